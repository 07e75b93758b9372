"""A network while it learns: its steps, their gradients, its frozen stem, its averaged weights, and its evaluation.

The validation films go through the very module that scores later, in float32 (without TensorFloat-32), so that the
temperature and thresholds fitted on their logits hold for the engine.

Films larger than the model's input are shrunk once, before the first epoch; `models.networks.preprocess.resize` gives
whole grey levels, so this equals, bit for bit, the shrinking inside the graph that scoring does.

Where the first layers never learn and no film is changed, those layers run once over the films
(`tuning/training/stem.py`).

An epoch on a GPU waits for it once, at its end, when its losses are read: a loss that is read at each step keeps the
GPU idle until the next step's work arrives. So divergence is told at the end of the epoch, and augmentation draws on
the host.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.engines.machine import Capability, capability_of, has_native_bf16
from models.errors import RayscanError
from models.films import Films
from models.networks.classifier import ScanClassifier
from models.networks.float32 import exact_float32
from models.networks.preprocess import Preprocess, resize_films
from models.networks.zoo import Majority, build, layer_groups
from models.spec import ModelSpec
from tuning.training.augment.batch import Augment
from tuning.training.checkpoint import Checkpoint, optimiser_state, restore_network, restore_optimiser, under
from tuning.training.gpu import free_bytes
from tuning.training.losses import class_weights, cross_entropy, focal, importance
from tuning.training.mix import mix
from tuning.training.optimiser import Average, copy_weights, freeze, make_optimiser, set_rate, train_mode
from tuning.training.schedule import Indices, films_of_epoch, mixing_generator, rate, steps_of_epoch
from tuning.training.settings import TrainSettings
from tuning.training.shelf import Shelf, stays
from tuning.training.stem import Stem, keeps_still, make_stem
from tuning.training.workers import Workers

StateDict = dict[str, Tensor]

EVALUATION_BATCH: Final = 64
LOSSES: Final = {"cross_entropy": cross_entropy, "focal": focal}


class Learner:
    """A network with all that changes as it learns: weights, optimiser, average, random generators."""

    def __init__(
        self,
        spec: ModelSpec,
        settings: TrainSettings,
        train: Films,
        val: npt.NDArray[np.uint8],
        *,
        device: torch.device,
        weights: Mapping[str, Tensor] | None,
        workers: Workers,
    ) -> None:
        """`val` are the pixels [N, size, size] of the films it is evaluated on.

        `weights` is a state to start from, as `tuning.training.loop.fit` takes it; None starts at random.
        """
        self.spec, self.settings, self.device, self.workers = spec, settings, device, workers
        self.capability = capability_of(device)
        self.train_labels = train.labels
        self.labels = torch.tensor(train.labels).to(device)
        train_pixels, val_pixels = (resize_films(pixels, spec.preprocessing.size) for pixels in (train.pixels, val))
        stay = stays(train_pixels.nbytes + val_pixels.nbytes, free_bytes(device))
        self.train, self.val = (Shelf(pixels, device, stay=stay) for pixels in (train_pixels, val_pixels))
        self.network = workers.prepare(build(spec), device).to(device).to(memory_format=torch.channels_last)
        self.classifier = ScanClassifier(Preprocess(spec.preprocessing), self.network).to(device)
        self.learns = any(parameter.requires_grad for parameter in self.network.parameters())
        self.groups: Sequence[Sequence[nn.Parameter]] = layer_groups(self.network) if self.learns else []
        if weights is not None:
            copy_weights(weights, self.network, self.groups[-1] if self.groups else [])
        workers.share_first(list(self.network.state_dict().values()))
        if isinstance(self.network, Majority):
            self.network.learn(self.labels)
        self.average = Average(self.network, settings.ema) if settings.ema and self.learns else None
        self.optimiser = make_optimiser(self.groups, settings) if self.learns else None
        self.augment = Augment(settings.augmentation)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.grain = torch.Generator(device).manual_seed(settings.seed) if device.type == "cuda" else self.generator
        balanced = settings.class_weighting == "balanced"
        self.class_weights = class_weights(self.labels, len(spec.classes)) if balanced else None
        self.stem: Stem | None = None

    @property
    def evaluated(self) -> ScanClassifier:
        """The classifier that is evaluated and kept: with the averaged weights, if there are any."""
        if self.average is None:
            return self.classifier
        return ScanClassifier(self.classifier.preprocess, self.average.network).to(self.device)

    def state_dict(self) -> StateDict:
        """A copy of the evaluated weights on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.evaluated.network.state_dict().items()}

    def run_stem(self) -> None:
        """Run the frozen layers once over all films, if their output never changes in this training."""
        if not (self.learns and keeps_still(self.settings)):
            return
        freeze(self.groups, self.settings, 1)
        self.stem = make_stem(
            self.network,
            self.classifier.preprocess,
            self.train.pixels,
            self.val.pixels,
            device=self.device,
            precision=partial(precision, self.device, self.capability),
        )

    def train_epoch(self, epoch: int) -> float:
        """Train for one epoch, counted from 1; the mean of the minimised loss. Raises `RayscanError` on divergence."""
        if self.workers.rank:
            seed = np.random.SeedSequence((self.settings.seed, epoch, self.workers.rank)).generate_state(1).item()
            torch.manual_seed(seed)
            self.generator.manual_seed(seed)
            self.grain.manual_seed(seed)
        if self.learns:
            freeze(self.groups, self.settings, epoch)
        own = [self.workers.share(index) for index in films_of_epoch(self.settings, self.train_labels, epoch)]
        here = torch.split(torch.from_numpy(np.concatenate(own)).to(self.device), [len(index) for index in own])
        steps = zip(own, here, strict=True)
        each = torch.stack([self._step(epoch, step, *films) for step, films in enumerate(steps)])
        losses = self.workers.total(each).cpu().numpy()
        if not np.isfinite(losses).all():
            raise self._diverged(f"the loss is {losses[~np.isfinite(losses)][0]}")
        return float(losses.mean())

    @torch.inference_mode()
    @exact_float32()
    def evaluate(self) -> npt.NDArray[np.float32]:
        """Logits [N, C] of the films it is evaluated on, as the engine computes them.

        Each worker computes a part of them, all with the first worker's statistics of batch normalisation.
        """
        classifier = self.evaluated
        classifier.network.eval()
        self.workers.share_first(list(classifier.network.buffers()))
        computed = torch.zeros(len(self.val), len(self.spec.classes), device=self.device)
        first, last = self.workers.part(len(self.val))
        for start in range(first, last, EVALUATION_BATCH):
            end = min(start + EVALUATION_BATCH, last)
            films = self.val.between(start, end) if self.stem is None else self.stem.val[start:end].to(self.device)
            computed[start:end] = self._logits(classifier, films)
        logits: npt.NDArray[np.float32] = self.workers.total(computed).cpu().numpy()
        if not np.isfinite(logits).all():
            raise self._diverged("its logits are not finite")
        return logits

    def tensors(self) -> dict[str, Tensor]:
        """Copies, for a checkpoint, of the weights and all else that steps change."""
        tensors = {**dict(under("network", self.network.state_dict())), **dict(under("generator", self._generators()))}
        if self.optimiser is not None:
            tensors |= dict(under("optimiser", optimiser_state(self.optimiser)))
        if self.average is not None:
            tensors |= dict(under("average", self.average.network.state_dict()))
        return tensors

    def facts(self) -> dict[str, Any]:
        """The plain values that belong to `tensors`."""
        averaged = {} if self.average is None else {"averaged_steps": self.average.updates}
        return {"device": self.device.type, **averaged}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over `tensors` and `facts`, in place."""
        restore_network(self.network, checkpoint.part("network"))
        if self.optimiser is not None:
            restore_optimiser(self.optimiser, checkpoint.part("optimiser"))
        if self.average is not None:
            restore_network(self.average.network, checkpoint.part("average"))
            self.average.updates = int(checkpoint.facts["averaged_steps"])
        states = checkpoint.part("generator")
        torch.set_rng_state(states["torch"])
        self.generator.set_state(states["augment"])
        # the states of generators on different kinds of devices do not fit each other
        if self.device.type == "cuda" == checkpoint.facts["device"]:
            self.grain.set_state(states["grain"])
            torch.cuda.set_rng_state(states["cuda"], self.device)

    def _generators(self) -> dict[str, Tensor]:
        states = {"torch": torch.get_rng_state(), "augment": self.generator.get_state()}
        if self.device.type == "cuda":
            states |= {"grain": self.grain.get_state(), "cuda": torch.cuda.get_rng_state(self.device)}
        return states

    def _step(self, epoch: int, step: int, index: Indices, here: Tensor) -> Tensor:
        """One step of gradient descent on the films at `index`; this worker's part of the loss before it, float64.

        `here` is the index on the device.
        """
        films, labels = self._batch(epoch, step, index, here)
        train_mode(self.network)
        if self.optimiser is not None:
            self.optimiser.zero_grad()
        loss = self._gradients(films, labels)
        if self.optimiser is not None:
            self._descend(self.optimiser, epoch, step)
        if self.average is not None:
            self.average.update(self.network)
        return loss

    def _batch(self, epoch: int, step: int, index: Indices, here: Tensor) -> tuple[Tensor, Tensor]:
        """The films of a step, augmented and mixed, and their labels; instead of films, the stem's output for them."""
        labels = self.labels[here]
        if self.stem is not None:
            return self.stem.train[here.to(self.stem.train.device)].to(self.device), labels
        films = self.augment(self.train.take(index, here), self.generator, self.grain)
        if not (self.settings.mixup or self.settings.cutmix):
            return films, labels
        return mix(
            films,
            labels,
            classes=len(self.spec.classes),
            mixup=self.settings.mixup,
            cutmix=self.settings.cutmix,
            rng=mixing_generator(self.settings, epoch, step),
        )

    def _logits(self, classifier: ScanClassifier, films: Tensor) -> Tensor:
        if self.stem is None:
            return classifier.logits(films)
        with self.stem.skipped(classifier.network):
            logits: Tensor = classifier.network(films)
        return logits.float()

    def _gradients(self, films: Tensor, labels: Tensor) -> Tensor:
        """Add up the gradients of a step's batches; this worker's part of the mean loss of all its films."""
        # at least two films a batch, if there are two: batch normalisation needs them
        batches = max(1, min(self.settings.accumulate, len(films) // 2))
        whole = self.workers.total(importance(labels, self.class_weights).sum())
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch, targets in zip(films.tensor_split(batches), labels.tensor_split(batches), strict=True):
            with torch.set_grad_enabled(self.learns), precision(self.device, self.capability):
                logits = self._logits(self.classifier, batch)
                loss = LOSSES[self.settings.loss](
                    logits, targets, weights=self.class_weights, smoothing=self.settings.label_smoothing
                )
                if batches > 1 or self.workers.count > 1:
                    loss = loss * (importance(targets, self.class_weights).sum() / whole)
            total = total + loss.detach().double()
            if self.learns:
                loss.backward()  # type: ignore[no-untyped-call]
        self.workers.add_up(list(self.network.parameters()))
        return total

    def _descend(self, optimiser: torch.optim.Optimizer, epoch: int, step: int) -> None:
        """Change the weights by their gradients, at the learning rate of this step."""
        steps = steps_of_epoch(self.settings, len(self.train_labels))
        share = rate(self.settings, (epoch - 1) * steps + step, self.settings.epochs * steps)
        set_rate(optimiser, self.settings.learning_rate * share)
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        optimiser.step()

    def _diverged(self, how: str) -> RayscanError:
        return RayscanError(
            f"training of {self.spec.name} diverged: {how}; lower the learning rate ({self.settings.learning_rate:g})"
        )


def precision(device: torch.device, capability: Capability | None) -> torch.autocast:
    """What steps compute in: bfloat16 on GPUs that have it, by their compute capability; else float32.

    Older GPUs emulate it, which is slower than float32. On CPUs float32 is faster, once the allocator keeps its memory.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_native_bf16(capability))
