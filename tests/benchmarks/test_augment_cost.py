"""What augmentation costs beside the training step it feeds, on one CPU thread.

One row a recipe: milliseconds of CPU a film, and the share of the whole step (augmentation, preprocessing, forward,
backward, optimiser) of MobileNetV2 0.35 at 224 px, batch 64. The usual recipe must stay within a tenth.
"""

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from models.engines.allocator import keep_memory
from models.networks.classifier import ScanClassifier
from models.networks.preprocess import Preprocess
from models.networks.zoo import build, layer_groups
from models.spec import ModelSpec, Preprocessing
from tuning.training.augment.batch import Augment, Augmentation
from tuning.training.losses import cross_entropy
from tuning.training.optimiser import make_optimiser
from tuning.training.settings import TrainSettings

BATCH, SIZE, STEPS = 64, 224, 8
RECIPES = {
    "usual (0.5)": Augmentation(strength=TrainSettings().augment),
    "usual and each other one at 0.1": Augmentation(
        strength=0.5, flip=0.1, blur=0.1, cutout=0.1, elastic=0.1, jpeg=0.1, shrink=0.1
    ),
    "two operations": Augmentation(operations=2),
    **{f"{name} of all films": Augmentation(**{name: 1.0}) for name in ("blur", "cutout", "elastic", "jpeg", "shrink")},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_memory()
    yield
    torch.set_num_threads(threads)


def milliseconds(call: Callable[[], object]) -> float:
    """CPU time a film: the median over steps, after one that fills the allocator."""
    call()
    spent = []
    for _ in range(STEPS):
        begun = time.process_time()
        call()
        spent.append(time.process_time() - begun)
    return sorted(spent)[len(spent) // 2] * 1000 / BATCH


@pytest.mark.bench
def test_usual_augmentation_is_a_tenth_of_a_step_at_most() -> None:
    generator = torch.Generator().manual_seed(0)
    films = torch.randint(0, 255, (BATCH, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    labels = torch.arange(BATCH) % 2
    spec = ModelSpec(name="mobilenetv2_035", preprocessing=Preprocessing(size=SIZE))
    network = build(spec).to(memory_format=torch.channels_last)
    classifier = ScanClassifier(Preprocess(spec.preprocessing), network).train()
    optimiser = make_optimiser(layer_groups(network), TrainSettings())

    def step() -> None:
        optimiser.zero_grad()
        cross_entropy(classifier.logits(films), labels).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()

    bare = milliseconds(step)
    print(f"\nstep without augmentation: {bare:.2f} ms a film")
    costs = {}
    for name, recipe in RECIPES.items():
        augment = Augment(recipe)
        costs[name] = milliseconds(lambda augment=augment: augment(films, generator))
        print(f"{name:40s} {costs[name]:6.2f} ms a film, {costs[name] / (costs[name] + bare):6.1%} of the step")
    assert costs["usual (0.5)"] <= 0.1 * (bare + costs["usual (0.5)"])
