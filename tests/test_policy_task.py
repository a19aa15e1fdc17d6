"""A GLUE task as what a search preserves: what its damage is, and which sentences it sees."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.models_support import TINY_MODEL
from tests.test_eval_tasks import write_sst
from wattbit.errors import WattbitError
from wattbit.models.data import load_vocabulary
from wattbit.models.learner import MoELearner
from wattbit.models.task_subject import TaskSubject
from wattbit.models.tasks import Split, Task, read_task
from wattbit.plan import Allocation, ExpertId, ExpertStats

pytest_plugins = ["tests.models_support"]


@pytest.fixture(scope="module")
def learner(data: Path, model_dir: Path) -> MoELearner:
    return MoELearner.open(data, model_dir)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return read_task(str(write_sst(tmp_path_factory.mktemp("glue") / "sst2", 60)))


def bare(expert: ExpertId) -> ExpertStats:
    damage = ((2, 9.0), (4, 9.0), (8, 9.0))
    return ExpertStats(expert, 0.25, 0.25, 1.0, 0.0, 1.0, 0.0, damage, 100)


STATS = [bare(expert) for expert in TINY_MODEL.expert_ids]


def table(learner: MoELearner, task: Task, data: Path) -> torch.Tensor:
    """Damage [N, K]."""
    found = TaskSubject(learner, task, load_vocabulary(data)).stats(STATS)
    assert [replace(one, damage=STATS[0].damage) for one in found] == STATS
    return torch.tensor([[rise for _, rise in one.damage] for one in found])


def test_damage_is_a_divergence_that_falls_with_the_width(learner: MoELearner, task: Task, data: Path) -> None:
    damage = table(learner, task, data)
    assert (damage > -1e-7).all()
    assert damage.sum(dim=0).tolist() == sorted(damage.sum(dim=0).tolist(), reverse=True)
    assert damage[:, 0].sum() > 4 * damage[:, 2].sum()


@pytest.mark.parametrize("expert", TINY_MODEL.expert_ids, ids=str)
def test_an_expert_takes_the_place_of_its_own_weights_alone(
    learner: MoELearner, task: Task, data: Path, expert: ExpertId, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = TaskSubject(learner, task, load_vocabulary(data))
    mixture = learner.network.layers[expert.layer].mixture
    w1, w2 = mixture.w1[expert.expert], mixture.w2[expert.expert]

    class Scaled:
        """The expert's float weights, its outputs times a factor."""

        def __init__(self, factor: float) -> None:
            self.expert, self.factor = expert, factor

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * F.linear(F.linear(x, w1).relu(), w2)

    def found(factor: float) -> torch.Tensor:
        monkeypatch.setattr(learner, "expert", lambda *_: Scaled(factor))
        return subject.alone(expert, 2)

    torch.testing.assert_close(found(1.0), subject.log_chances(None))
    halved = found(0.5)
    before = w2.detach().clone()
    try:
        w2.data.mul_(0.5)
        torch.testing.assert_close(halved, subject.log_chances(None))
    finally:
        w2.data.copy_(before)
    assert not torch.equal(halved, subject.log_chances(None))


def test_what_judges_a_search_chooses_nothing(learner: MoELearner, task: Task, data: Path) -> None:
    other = replace(task, dev=Split(("x",) * 3, (0, 1, 0)))
    assert torch.equal(table(learner, other, data), table(learner, task, data))
    spare = set(range(0, 60, 5))  # of those that measure damage no label is read
    flipped = tuple(1 - label if i in spare else label for i, label in enumerate(task.train.labels))
    relabelled = replace(task, train=Split(task.train.texts, flipped))
    assert torch.equal(table(learner, relabelled, data), table(learner, task, data))


def test_the_score_is_of_the_widths_asked_for(learner: MoELearner, task: Task, data: Path) -> None:
    subject = TaskSubject(learner, task, load_vocabulary(data))
    widths = Allocation.of(dict.fromkeys(TINY_MODEL.expert_ids, 8))
    assert subject.score(None) > 0.9
    assert subject.score(widths) == pytest.approx(subject.score(None), abs=0.1)
    assert subject.to_json()["sentences"] == {"train": 48, "dev": 60, "damage": 12}


def test_too_few_sentences_are_refused(learner: MoELearner, task: Task, data: Path) -> None:
    few = replace(task, train=Split(task.train.texts[:4], task.train.labels[:4]))
    with pytest.raises(WattbitError, match="sst2 has 4 training sentences, at least 5 are needed"):
        TaskSubject(learner, few, load_vocabulary(data))
