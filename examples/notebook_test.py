"""The notebook runs from its first cell to its last, and learns."""

import os
import pathlib
import re

import keras
import pytest

NOTEBOOK = pathlib.Path(__file__).with_name("language_model.ipynb")


@pytest.mark.slow  # a minute
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="it exports a SavedModel"
)
# Jupyter's own libraries.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_notebook(monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    monkeypatch.setenv("NOTEBOOK_STEPS", "80")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parent.parent)]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(o.get("text", "") for o in outputs)
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2
    perplexity = re.findall(r"perplexity per word +([\d,.]+)", text)[-1]
    assert float(perplexity.replace(",", "")) < 2000  # of 681 subwords
    assert "state scalars" in text and "nats  " in text
    assert "# transformer_lm trained on languagemodel_lm1b2k_packed" in text
