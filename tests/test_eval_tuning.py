"""GLUE with all weights fine-tuned: side by side as alone, in float and at widths."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.models_support import write_text_corpus
from tests.test_eval_tasks import write_sst
from wattbit.cli import main
from wattbit.models.data import load_vocabulary
from wattbit.models.learner import MoELearner
from wattbit.models.stack import Stack
from wattbit.models.tasks import Task, read_task
from wattbit.models.tuning import Classifier, Sentences, tuned_score
from wattbit.plan import Allocation

pytest_plugins = ["tests.models_support"]


@pytest.fixture
def learner(data: Path, model_dir: Path) -> MoELearner:
    return MoELearner.open(data, model_dir)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return read_task(str(write_sst(tmp_path / "sst2")))


def test_padding_changes_nothing(learner: MoELearner, task: Task, data: Path):
    """A sentence's logits alone are those beside longer ones."""
    sentences = Sentences.of(task.dev, load_vocabulary(data), learner.config.context)
    found = Classifier(Stack.of([learner.network]), 2)
    torch.nn.init.normal_(found.weight)
    with torch.no_grad():
        together, _ = found.logits(sentences.tokens[None], sentences.lengths[None], None)
        for i in (0, 17):
            alone = sentences.tokens[i, : int(sentences.lengths[i])]
            one, _ = found.logits(alone[None, None], sentences.lengths[i][None, None], None)
            torch.testing.assert_close(one[0, 0], together[0, i], rtol=1e-4, atol=1e-4)
        assert torch.equal(found.predict(sentences)[0], together[0].argmax(dim=-1))


def test_models_are_tuned_as_alone(learner: MoELearner, task: Task, data: Path):
    """Also at widths, from the same float model; the network itself stays as it is."""
    sentences = Sentences.of(task.train, load_vocabulary(data), learner.config.context)
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    narrow = learner.quantizers(Allocation.of(dict.fromkeys(learner.config.expert_ids, 3)))
    both = Classifier(Stack.of([learner.network, learner.network]), 2)
    both.train(sentences, 4, 1e-3, [0, 1])
    one = Classifier(Stack.of([learner.network]), 2)
    one.train(sentences, 4, 1e-3, [1])
    torch.testing.assert_close(both.weight[1], one.weight[0], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(both.weight[0], both.weight[1], atol=1e-4), "each draws its own sentences"
    chosen, alone = both.select([1], narrow), one.select([0], narrow)
    chosen.train(sentences, 3, 1e-3, [5])
    alone.train(sentences, 3, 1e-3, [5])
    torch.testing.assert_close(chosen.weight, alone.weight, rtol=1e-2, atol=1e-4)
    for name, value in learner.network.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("bits", [None, 8, 2])
def test_what_can_be_learned_is_learned_at_any_width(learner: MoELearner, task: Task, data: Path, bits: int | None):
    widths = bits and Allocation.of(dict.fromkeys(learner.config.expert_ids, bits))
    assert tuned_score(task, learner, load_vocabulary(data), widths or None, 60, 0) > 0.9


def test_eval_tunes_on_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text, task = write_text_corpus(tmp_path / "text"), write_sst(tmp_path / "sst2")

    def invoke(*words: str) -> str:
        result = CliRunner().invoke(main, list(words))
        assert result.exit_code == 0, result.output
        return result.stdout

    invoke("train", "--preset", "tiny", "--data", str(text))
    tuned = ("eval", "--task", str(task), "--tune", "60", "--json")
    for more in ((), ("--method", "rtn", "--bits", "2")):
        found = json.loads(invoke(*tuned, *more))
        assert found["glue"]["sst2"] > 0.9
    assert CliRunner().invoke(main, ["eval", "--tune", "5"]).exit_code == 2
