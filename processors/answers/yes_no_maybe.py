"""PubMedQA's three decisions. Only the word "maybe" is maybe: "uncertain" and "cannot be determined" are no answer.

Q. Jin et al. (2019). PubMedQA: A Dataset for Biomedical Research Question Answering. arXiv 1909.06146.
"""

from __future__ import annotations

from mm_spine.processors.answers.kind import keyed
from mm_spine.processors.answers.yes_no import reading

find, read = reading("yes", "no", "maybe")

KIND = keyed(find, read)
