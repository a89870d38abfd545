r"""Measures performance against memory: one language model, many optimizers.

    python -m trainer.experiments.memory_performance --scale=demo
    python -m trainer.experiments.memory_performance --scale=cpu \
        --tmp_dir=FOLDER_OF_THE_UNPACKED_ARCHIVE --output_dir=memory_performance

The paper's main experiment (Section 5, Figure 2). Rates are tuned as `comparison`
says. An entry is OPTIMIZER or OPTIMIZER/NAME=VALUE/..., with hyperparameters of its
own: adam/learning_rate_warmup_steps=50, et2_rank1/optimizer_state_budget=64KB. What is
finished is in OUTPUT_DIR and not run again: sweep.db, results.jsonl, table.md,
perplexity.png, curves.png (and .svg).
"""

import dataclasses

from trainer.experiments import experiment
from trainer.experiments import language_modeling
from trainer.experiments import tradeoff
from trainer.experiments.language_modeling import NO_REGULARIZATION

ALGORITHM_1 = ("et1", "et2", "et3", "etinf")
PEERS = ("sgd", "adagrad", "adam", "adafactor")
RANK_ONE = ("et1_rank1", "et2_rank1", "et3_rank1")

DEMO = language_modeling.Scale(
    problem="languagemodel_lm1b2k_packed",
    hparams_set="transformer_tiny",
    hparams=NO_REGULARIZATION + "hidden_size=64,filter_size=256,num_heads=2,"
    "batch_size=2048,learning_rate_warmup_steps=200",
    train_steps=900,
    max_length=64,
    tmp_dir="testdata",
    entries=(
        "sgd",
        "adagrad",
        "adam",
        "et1",
        "et2",
        "et2_rank1",
        "et2_orthogonal_momentum",
    ),
    samples=3,
)
SCALES = {
    # Under a minute.
    "smoke": dataclasses.replace(
        DEMO, train_steps=6, entries=("sgd", "et2"), trials=2, seeds=2, samples=0
    ),
    # Some minutes on two cores.
    "demo": DEMO,
    "cpu": dataclasses.replace(
        language_modeling.TINY,
        entries=(*PEERS, *ALGORITHM_1, *RANK_ONE, *tradeoff.ORTHOGONAL),
        trials=5,
        seeds=3,
    ),
    "gpu": dataclasses.replace(
        language_modeling.BASE,
        entries=(*PEERS, *ALGORITHM_1, *RANK_ONE, *tradeoff.ORTHOGONAL),
        trials=5,
        dtype="mixed_bfloat16",
    ),
    "paper": dataclasses.replace(
        language_modeling.PAPER, entries=(*PEERS, *ALGORITHM_1), trials=10
    ),
}


run = experiment.entry_point(
    tradeoff.conduct,
    SCALES,
    __doc__,
    __name__,
    default="demo",
    changes=language_modeling.define_changes(),
)

if __name__ == "__main__":
    run()
