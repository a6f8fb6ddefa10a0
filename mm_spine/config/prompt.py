"""Define the section of a configuration that says how questions are put to the model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from mm_spine.config.values import Section, expand_prompt

SET_BY_US = frozenset(
    {
        *("conversation", "messages", "chat_template", "tools", "documents", "tokenize", "tokenizer_kwargs"),
        *("add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask", "processor_kwargs"),
        *("return_dict", "return_tensors", "padding", "truncation", "max_length", "load_audio_from_video"),
    }
)
"""Arguments of transformers' `apply_chat_template` that are no variables of the template, or that we give."""


class PromptConfig(Section):
    """How questions are put to the model; `prompt: short` is short for `prompt: {style: short}`.

    `style: reason` asks for reasoning and a boxed answer, `short` for the answer only, `verbatim` for nothing beside
    the question and its options. A `system` message stands before every question. `template_arguments` are variables
    of the model's chat template: `{enable_thinking: false}` turns off the thinking of Qwen3. The model's saved
    processor and template stay as they are.
    """

    style: Literal["reason", "short", "verbatim"] = Field(
        default="reason", description="ask for reasoning first, for the answer only, or as the question is written"
    )
    system: str | None = Field(default=None, description="the system message; null: that of the chat template, or none")
    template_arguments: dict[str, JsonValue] = Field(
        default={}, description="variables of the chat template, by name, such as `enable_thinking`"
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, section: Any) -> Any:
        return expand_prompt(section)

    @field_validator("template_arguments")
    @classmethod
    def _variables(cls, arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if taken := sorted(SET_BY_US & arguments.keys()):
            raise ValueError(f"{taken[0]} is no variable of a chat template: leave it out")
        return arguments
