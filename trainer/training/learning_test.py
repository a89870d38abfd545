import pytest

from conftest import PROBLEM
from conftest import TESTDATA
from trainer import registry
from trainer.data import datagen
from trainer.experiments import language_modeling
from trainer.training import loop
from trainer.training.run import Run


@pytest.mark.slow  # minutes
def test_the_known_entropy_of_a_corpus_is_reached(tmp_path):
    """testdata's grammar has a known entropy per word: no model can be below."""
    datagen.generate(registry.problems.get(PROBLEM), TESTDATA, tmp_path, max_length=64)
    hparams = registry.hparams_sets.get("transformer_tiny")().override(
        language_modeling.NO_REGULARIZATION
        + "optimizer=et2_rank1,batch_size=4096,learning_rate_warmup_steps=300"
    )
    run = Run(PROBLEM, str(tmp_path), hparams, 1200, local_eval_frequency=200)
    evaluations = loop.train(run).evaluations
    perplexity = min(e.perplexity_per_word for _, e in evaluations)
    floor = language_modeling.known_perplexity(TESTDATA)
    assert floor < perplexity < floor**1.1
