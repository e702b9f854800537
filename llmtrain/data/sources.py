"""The data sources: which function opens which config."""

from __future__ import annotations

from collections.abc import Callable

from llmtrain.data.builtin import python_code_source, python_prose_source
from llmtrain.data.corpus import Source
from llmtrain.data.files import text_source
from llmtrain.data.huggingface import huggingface_source
from llmtrain.schema.data import HuggingFaceData, PythonCodeData, PythonProseData, TextData

SOURCES: dict[type, Callable[..., Source]] = {
    TextData: text_source,
    HuggingFaceData: huggingface_source,
    PythonCodeData: python_code_source,
    PythonProseData: python_prose_source,
}
"""Builder of each kind: `builder(config) -> Source`."""
