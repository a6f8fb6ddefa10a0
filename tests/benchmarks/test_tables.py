"""Tables of every format hold the same rows, and only a bad line is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from mm_spine.benchmarks.tables import read_table


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.json", '[{"id": "1", "q": "ä"}, {"id": "2", "q": "b"}]'),
        ("t.json", '{"version": 1, "data": [{"id": "1", "q": "ä"}, {"id": "2", "q": "b"}]}'),
        ("t.json", '{"1": {"q": "ä"}, "2": {"q": "b"}}'),
        ("t.json", '{"id": "1", "q": "ä"}\n{"id": "2", "q": "b"}\n'),
        ("t.jsonl", '\ufeff{"id": "1", "q": "ä"}\r\n\r\n{"id": "2", "q": "b"}'),
        ("t.csv", "\ufeffid,q\r\n1,ä\r\n2,b\r\n"),
        ("t.csv", 'id;q\n1;"ä"\n2;b\n'),
        ("t.tsv", "id\tq\n1\tä\n2\tb\n"),
    ],
)
def test_tables_of_every_format_hold_the_same_rows(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    table = read_table(tmp_path / name)
    assert list(table.rows) == [{"id": "1", "q": "ä"}, {"id": "2", "q": "b"}]
    assert table.problems == ()


def test_a_bad_csv_line_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'id,q\n1,"two\nlines"\n2\n3,x,y\n4,\xff\n5,"x"y\n6,last\n')
    table = read_table(tmp_path / "t.csv")
    assert list(table.rows) == [{"id": "1", "q": "two\nlines"}, {"id": "6", "q": "last"}]
    assert list(table.numbers) == [3, 8]
    assert [number for number, _ in table.problems] == [4, 5, 6, 7]
    assert ["fewer" in table.problems[0][1], "more" in table.problems[1][1], "UTF-8" in table.problems[2][1]] == [
        True
    ] * 3


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("t.json", b'{"a": [], "b": []}', "expected an array of objects"),
        ("t.json", b"3", "expected an array of objects"),
        ("t.json", b"[{", "not JSON"),
        ("t.json", b"\xff", "not UTF-8"),
        ("t.parquet", b"PAR1 no more", "not a Parquet file"),
        ("t.csv", b"Pr\xfcfung,id\n", "not UTF-8"),
        ("t.csv", b"id,q,id\n", "two columns are called 'id'"),
        ("t.xlsx", b"", "a table is one of .jsonl"),
    ],
)
def test_a_file_damaged_as_a_whole_is_named(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=reason) as error:
        read_table(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
