import math

from trainer.training import paper_runs


def test_weights_are_those_of_the_model():
    from trainer import registry

    hparams = registry.hparams_sets.get("transformer_tiny")()
    model = registry.models.get("transformer_lm")(hparams, 100, 16)
    matrices = [v for v in model.trainable_variables if len(v.shape) > 1]
    expected = sum(math.prod(v.shape) for v in matrices)
    assert paper_runs.weights(hparams, 100) == expected


def test_hours():
    base = paper_runs.MODELS["base"]
    # 6 N + 12 L T D for N = 2**15 * 512 + 6 * (4 * 512**2 + 2 * 512 * 2048)
    assert paper_runs.flops_per_token(base) == 6 * 35_651_584 + 12 * 6 * 256 * 512
    second = 500_000 * 4096 * paper_runs.flops_per_token(base)
    assert paper_runs.hours(base, second) == 1 / 3600
    assert paper_runs.report(second).endswith("big 0.0 h")
