import pytest

from trainer.errors import HParamsError
from trainer.errors import UsageError
from trainer.hparams import HParams
from trainer.training import ranges
from trainer.training.ranges import Range


def test_ranges():
    text = "learning_rate_constant=0.01:10:log,optimizer=et2|adam,num_hidden_layers=1:3"
    assert ranges.parse(text) == {
        "learning_rate_constant": Range(low=0.01, high=10.0, log=True),
        "optimizer": Range(choices=("et2", "adam")),
        "num_hidden_layers": Range(low=1, high=3),
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no range to search"),
        ("rate=1:2", "unknown hparam 'rate'"),
        ("batch_size", "range 'batch_size' is not"),
        ("batch_size=2.5:3", "of int values"),
        ("weight_decay=0:1:log", "is not NAME="),
        ("weight_decay=2:1", "LOW below HIGH"),
        ("weight_decay=0:inf", "LOW below HIGH"),
        ("weight_decay=nan:1", "LOW below HIGH"),
        ("optimizer=a:b", "of str values"),
        (
            "weight_decay=0:1,optimizer=et2|adm",
            r"unknown optimizer 'adm'\. Did you mean adam\? Known: ",
        ),
        ("weight_decay=0:1,weight_decay=2:3", "weight_decay has two ranges"),
        ("learning_rate_schedule=no", "unknown schedule 'no'. Known: "),
    ],
)
def test_wrong_ranges(text, message):
    with pytest.raises(UsageError, match=message):
        ranges.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "optimizer=et2|adam",
        "batch_size=256:4096",
        "learning_rate_constant=0.01:10.0:log",
        "optimizer_state_budget=0|64000",
    ],
)
def test_a_range_is_what_was_written(text):
    name, _, values = text.partition("=")
    assert str(ranges.parse(text)[name]) == values


def rows_of_256(hparams):
    if hparams.batch_size < 256:
        raise HParamsError("smaller than one row")


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "optimizer=adam|et2,num_heads=2|3",
            r"num_heads=3 of num_heads=2\|3 cannot be trained: hidden_size must be a "
            r"multiple .*num_heads=3\. Leave it out",
        ),
        ("batch_size=128|4096", "batch_size=128 of .*smaller than one row"),
        ("batch_size=128:4096", "batch_size=128 of batch_size=128:4096 cannot"),
        ("relu_dropout=0.5:1", r"relu_dropout=1\.0 of .* must be in \[0, 1\)"),
        ("num_heads=2|3,hidden_size=128|256", "num_heads=3 of"),
    ],
)
def test_values_that_no_trial_could_train(text, message):
    hparams = HParams(hidden_size=128, num_heads=4)
    with pytest.raises(UsageError, match=message):
        ranges.check(ranges.parse(text), hparams, rows_of_256)


@pytest.mark.parametrize(
    "text",
    [
        "num_heads=2|4,batch_size=256|4096",
        "learning_rate_constant=0.01:1:log",
        "num_heads=4|3,hidden_size=128|96",  # 3 with 96 alone
    ],
)
def test_values_that_some_trial_can_train(text):
    hparams = HParams(hidden_size=128, num_heads=4)
    ranges.check(ranges.parse(text), hparams, rows_of_256)
