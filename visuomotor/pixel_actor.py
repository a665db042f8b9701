"""Pixels and proprioception to an action distribution: the policy that moves the real arm.

Imports only torch and the networks beside it, and must not know the simulator's state: no method
takes anything but pixels (or features of pixels), proprioception and the policy's own memory.
Architecture after Zhu et al. 2018 (arXiv 1802.09564), section III: convolutions, a fully connected
layer, an LSTM. Beyond it, the LSTM also reads what the auxiliary heads see in the image: where
things are, and how far from the hand; and encoders with maps are asked it at every place of the
image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad

from visuomotor.aux_tasks import AuxHeads, FusedHeads, PlaceMaps, View, aux_loss, map_loss
from visuomotor.hand_position import HandPosition
from visuomotor.networks import GaussianHead, Normalizer, SpatialSoftmax, mlp, shrink_output

Hidden = tuple[Tensor, Tensor]

PIXEL_SCALE = 255.0  # largest value of a uint8 channel
PIXEL_MIDDLE = 0.5  # of a scaled one
LOCATED_CLIP = 5.0  # deviations: what the policy reads of an answer at most
EMPTY = -3.0  # logit of a map's cell at first: few show anything
DETAILS = 6  # numbers about what a map says is in a cell: where in it, how it lies
REACH = 0.1  # m, the unit of what the policy reads of a thing's way from the hand
MEAN_GAIN = 0.01  # of the last layer: the first actions are noise around zero, as PPO wants


def _keypoints(height: int, width: int, visual_dim: int) -> list[nn.Module]:
    """Three convolutions and the positions of 32 keypoints."""
    rows, columns = (((size - 5) // 2 + 1 - 3) // 2 + 1 for size in (height, width))
    return [
        nn.Conv2d(3, 16, kernel_size=5, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, stride=2),
        nn.ReLU(),
        nn.Conv2d(32, 32, kernel_size=3, padding=1),
        SpatialSoftmax(rows, columns),
        nn.Linear(2 * 32, visual_dim),
    ]


def _coarse(channels: tuple[int, int]) -> list[nn.Module]:
    """The convolutions of `compact` and of encoders with maps; channels: of the first, the last."""
    first, last = channels
    return [
        nn.Conv2d(3, first, kernel_size=6, stride=3),
        nn.ReLU(),
        nn.Conv2d(first, last, kernel_size=3, stride=2),
        nn.ReLU(),
        nn.Conv2d(last, last, kernel_size=3, padding=1),
    ]


def _coarse_cells(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of what `_coarse` makes of an image of so many pixels."""
    return ((height - 6) // 3 + 1 - 3) // 2 + 1, ((width - 6) // 3 + 1 - 3) // 2 + 1


def _compact(height: int, width: int, visual_dim: int) -> list[nn.Module]:
    """Coarser first strides: less than half of `keypoints`' time, 48 keypoints."""
    keypoints = SpatialSoftmax(*_coarse_cells(height, width))
    return [*_coarse((16, 48)), keypoints, nn.Linear(2 * 48, visual_dim)]


def _flat(height: int, width: int, visual_dim: int) -> list[nn.Module]:
    """Zhu et al. 2018: two convolutions, a fully connected layer."""
    rows, columns = (((size - 8) // 4 + 1 - 4) // 2 + 1 for size in (height, width))
    return [
        nn.Conv2d(3, 16, kernel_size=8, stride=4),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=4, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * rows * columns, visual_dim),
    ]


class _Mapped(nn.Module):
    """`compact`, with a map of every kind of thing beside its keypoints: where two things of a
    kind are, a keypoint is between them. Of each cell that shows one there are details, too, which
    count as far as the map says that it does."""

    def __init__(
        self, height: int, width: int, visual_dim: int, kinds: int, channels: tuple[int, int]
    ) -> None:
        super().__init__()
        rows, columns = _coarse_cells(height, width)
        self.shape = (kinds, rows, columns)
        last = channels[1]
        self.convolutions = nn.Sequential(*_coarse(channels))
        self.keypoints = SpatialSoftmax(rows, columns)
        self.maps = nn.Conv2d(last, kinds, kernel_size=3, padding=1)
        assert self.maps.bias is not None
        nn.init.constant_(self.maps.bias, EMPTY)
        self.details = nn.Conv2d(last, kinds * DETAILS, kernel_size=3, padding=1)
        cells = kinds * rows * columns
        self.linear = nn.Linear(2 * last + cells + DETAILS * cells, visual_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, visual_dim), and logits of the maps (B, kinds * rows * columns)."""
        found = self.convolutions(images)
        rectified = found.relu()
        # Both in one convolution, which reads its input once.
        parts = (self.maps, self.details)
        weight, bias = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias")
        )
        told = conv2d(rectified, weight, bias, padding=1)
        logits, details = told.split([self.shape[0], self.shape[0] * DETAILS], dim=1)
        shown = logits.sigmoid()
        details = details.unflatten(1, (-1, DETAILS)) * shown.unsqueeze(2)
        read = (self.keypoints(found), shown.flatten(1), details.flatten(1))
        return self.linear(torch.cat(read, dim=1)), logits.flatten(1)

    def cells(self) -> tuple[Tensor, Tensor]:
        """Pixels: the middles of the maps' columns and of its rows."""
        _, rows, columns = self.shape
        # Strides of 3 and 2, kernels of 6 and 3.
        return 6.0 + 6.0 * torch.arange(columns), 6.0 + 6.0 * torch.arange(rows)


# What the policy reads of an image: the CNN's features, what the heads make of them, or both.
READS = ("both", "located", "features")

# How well each finds a block in appearances that it has not seen: docs/findings.md.
ENCODERS = {"compact": _compact, "keypoints": _keypoints, "flat": _flat}
# Those that need a View: channels of their first convolution and of the others.
MAPPED = {"maps": (16, 48), "wide_maps": (24, 64)}


class PixelActor(nn.Module):
    """A diagonal Gaussian over A actions, from (3, H, W) uint8 pixels and proprioception."""

    _place_indices: Tensor

    def __init__(
        self,
        *,
        proprio_dim: int = 24,
        action_dim: int = 9,
        height: int = 64,
        width: int = 64,
        visual_dim: int = 128,
        proprio_dim_out: int = 64,
        hidden_dim: int = 128,
        encoder: str = "compact",
        recurrent: bool = True,
        target_dim: int = 0,
        aux_hidden_sizes: Sequence[int] = (200, 100),
        reads: str = "both",
        view: View | None = None,
        hand: HandPosition | None = None,
        places: Sequence[int] = (),
        fused_heads: bool = False,
        init_log_std: Tensor,
        min_std: Tensor,
    ) -> None:
        """height, width: pixels. init_log_std, min_std: (A,), in units of the action.

        encoder: one of ENCODERS, or of MAPPED with a view and heads; view: what maps are made of.
        recurrent: False replaces the LSTM with one feed-forward layer of the same width.
        target_dim: K, numbers that the auxiliary heads are asked for; 0: no heads.
        reads: what of the image the policy reads, one of READS; without heads, the features.
        hand, places: the vectors of the targets that are places in the world, which the policy also
          reads as seen from the hand; there must be heads.
        fused_heads: whether what the heads see is put right by the joints before the policy reads
          it; there must be heads.
        Raises ValueError if the image is too small for the convolutions, a shape differs or a name
        is unknown.
        """
        super().__init__()
        if init_log_std.shape != (action_dim,):
            raise ValueError(
                f"init_log_std: expected shape ({action_dim},), "
                f"received {tuple(init_log_std.shape)}"
            )
        if min(height, width) < 20:
            raise ValueError(f"image of {height}x{width} pixels: at least 20x20 is needed")
        self.hidden_dim = hidden_dim
        self.visual_dim = visual_dim
        self.recurrent = recurrent
        self._takes_raw_pixels = False

        # Keeps the features' scale while the CNN learns, so that the LSTM's gates do not
        # saturate; also takes out most of a global change of brightness.
        ends = (nn.LayerNorm(visual_dim), nn.ELU())
        self.place_maps: PlaceMaps | None = None
        if encoder in MAPPED:
            if view is None or target_dim == 0:
                raise ValueError(f"encoder '{encoder}' needs a view and auxiliary heads")
            mapped = _Mapped(height, width, visual_dim, len(view.kinds), MAPPED[encoder])
            x, y = mapped.cells()
            self.place_maps = PlaceMaps(view, height=height, width=width, x=x, y=y)
            self.encoder = nn.Sequential(mapped, *ends)
        elif encoder in ENCODERS:
            self.encoder = nn.Sequential(*ENCODERS[encoder](height, width, visual_dim), *ends)
        else:
            valid = ", ".join((*ENCODERS, *MAPPED))
            raise ValueError(f"encoder '{encoder}' is unknown; valid: {valid}")
        self.target_dim = target_dim
        self.aux_heads: AuxHeads | None = None
        if target_dim > 0:
            self.aux_heads = AuxHeads(
                visual_dim=visual_dim, target_dim=target_dim, hidden_sizes=aux_hidden_sizes
            )
        if reads not in READS:
            raise ValueError(f"reads '{reads}' is unknown; valid: {', '.join(READS)}")
        self.reads = reads if target_dim > 0 else "features"
        self.normalizer = Normalizer(proprio_dim)
        self.proprio_mlp = nn.Sequential(
            mlp((proprio_dim, proprio_dim_out, proprio_dim_out), nn.ELU), nn.ELU()
        )
        self._proprio_width = proprio_dim_out
        if fused_heads and target_dim == 0:
            raise ValueError("fused heads need auxiliary heads, whose answers they put right")
        self.fused_heads: FusedHeads | None = None
        if fused_heads:
            self.fused_heads = FusedHeads(target_dim=target_dim, proprio_dim=proprio_dim)
        core_inputs = proprio_dim_out
        core_inputs += visual_dim if self.reads != "located" else 0
        core_inputs += target_dim if self.reads != "features" else 0
        if hand is not None and (target_dim == 0 or not places):
            raise ValueError("places seen from the hand need auxiliary heads, and places")
        self.hand = hand
        numbers = [3 * index + k for index in places for k in range(3)] if hand is not None else []
        self.register_buffer(
            "_place_indices", torch.tensor(numbers, dtype=torch.long), persistent=False
        )
        core_inputs += len(numbers)
        if recurrent:
            self.lstm = nn.LSTM(core_inputs, hidden_dim)
            self._init_lstm()
        else:
            self.feed_forward = nn.Sequential(nn.Linear(core_inputs, hidden_dim), nn.ELU())
        self.mean_head = nn.Linear(hidden_dim, action_dim)
        shrink_output(self.mean_head, MEAN_GAIN)
        self.deviation = GaussianHead(init_log_std, min_std)

    def _init_lstm(self) -> None:
        """Orthogonal recurrence and a forget bias of 1: memory lasts from the first update on
        (Jozefowicz et al. 2015)."""
        # torch's order of gates: input, forget, cell, output
        forget = slice(self.hidden_dim, 2 * self.hidden_dim)
        with torch.no_grad():
            for name, parameter in self.lstm.named_parameters():
                if name == "weight_hh_l0":
                    nn.init.orthogonal_(parameter)
                elif name.startswith("bias"):
                    parameter.zero_()
                if name == "bias_ih_l0":
                    parameter[forget] = 1.0

    def set_normalization(self, mean: Tensor, std: Tensor) -> None:
        """Statistics of proprioception; mean, std: (proprio_dim,)."""
        self.normalizer.set(mean, std)

    def initial_hidden(self, num_envs: int) -> Hidden:
        """Memory at the start of an episode: two zeros (N, H); (N, 0) if feed-forward."""
        width = self.hidden_dim if self.recurrent else 0
        zeros = self.mean_head.weight.new_zeros(num_envs, width)
        return zeros, zeros.clone()

    def std(self) -> Tensor:
        """-> (A,), in units of the action."""
        deviation: Tensor = self.deviation()
        return deviation

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, H, W) uint8 -> (B, V): visual_dim features and, where there are heads,
        their K answers, and maps, as logits. Once per frame, not once per step."""
        if pixels.dtype != torch.uint8:
            raise TypeError(f"pixels: expected torch.uint8, received {pixels.dtype}")
        parts = self._look(pixels)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _look(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The parts of `encode`."""
        images = pixels.float()
        if not self._takes_raw_pixels:
            images = images.div_(PIXEL_SCALE).sub_(PIXEL_MIDDLE)
        maps: tuple[Tensor, ...] = ()
        if self.place_maps is None:
            features = self.encoder(images)
        else:
            features, *maps = self.encoder[0](images)
            features = self.encoder[1:](features)
        if self.aux_heads is None:
            return (features,)
        return features, self.aux_heads.normalized(features), *maps

    @torch.no_grad()
    def take_raw_pixels(self) -> None:
        """Puts the scaling of pixels into the first convolution, for good: the same function but
        for rounding, in less time. For a copy that acts and does not learn."""
        first = next(layer for layer in self.encoder.modules() if isinstance(layer, nn.Conv2d))
        assert first.bias is not None and not any(first.padding) and not self._takes_raw_pixels
        first.bias -= PIXEL_MIDDLE * first.weight.sum(dim=(1, 2, 3))
        first.weight /= PIXEL_SCALE
        self._takes_raw_pixels = True

    def answers(self, visual: Tensor) -> Tensor:
        """What the auxiliary losses judge: (..., V) of `encode` -> (..., *)."""
        return visual[..., self.visual_dim :]

    def located(self, visual: Tensor) -> Tensor:
        """What the heads see: (..., V) of `encode` -> (..., K) in metres.

        Raises ValueError if there are no heads.
        """
        return self._in_metres(self.answers(visual))

    def _in_metres(self, answers: Tensor) -> Tensor:
        if self.aux_heads is None:
            raise ValueError("this actor has no auxiliary heads")
        return self.aux_heads.in_metres(answers[..., : self.target_dim])

    def aux_loss(self, answers: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of positions and maps: (..., *) of `answers`, (..., K) in metres; metrics as of
        `aux_tasks.aux_loss`, and map_loss.

        Raises ValueError if there are no heads.
        """
        positions = self._in_metres(answers)
        assert self.aux_heads is not None
        loss, metrics = aux_loss(positions, targets, self.aux_heads.scale)
        if self.place_maps is not None:
            drawn = self.place_maps(targets)
            of_maps = map_loss(answers[..., self.target_dim :].view_as(drawn), drawn)
            loss, metrics["map_loss"] = loss + of_maps, of_maps.detach()
        return loss, metrics

    def fused_loss(
        self, visual: Tensor, proprio: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The auxiliary loss of the fused heads, of which nothing reaches the CNN: (..., V) of
        `encode`, (..., P), (..., K) in metres; metrics fused_loss, fused_position_error in metres.

        Raises ValueError if there are none.
        """
        if self.fused_heads is None or self.aux_heads is None:
            raise ValueError("this actor has no fused heads")
        answers = self._read_answers(self.answers(visual)[..., : self.target_dim])
        positions = self.aux_heads.in_metres(self.fused_heads(answers, self.normalizer(proprio)))
        loss, metrics = aux_loss(positions, targets, self.aux_heads.scale)
        names = {"aux_loss": "fused_loss", "aux_position_error": "fused_position_error"}
        return loss, {names[name]: value for name, value in metrics.items()}

    def step(self, visual: Tensor, proprio: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """One step of N worlds: (N, V), (N, P), hidden -> mean (N, A), hidden.

        The caller zeroes the hidden rows of worlds that start an episode.
        """
        return self._act(self._core_inputs(visual, proprio), hidden)

    def _act(self, inputs: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """The core's step, (N, inputs) of `_core_inputs`."""
        if not self.recurrent:
            return self.mean_head(self.feed_forward(inputs)), hidden
        h, c = hidden
        _, (h, c) = self.lstm(inputs.unsqueeze(0), (h.unsqueeze(0), c.unsqueeze(0)))
        h, c = h.squeeze(0), c.squeeze(0)
        return self.mean_head(h), (h, c)

    def unroll(
        self, visual: Tensor, proprio: Tensor, hidden: Hidden, episode_start: Tensor
    ) -> tuple[Tensor, Hidden]:
        """T steps at once: (T, N, V), (T, N, P), hidden, (T, N) bool -> mean (T, N, A), hidden.

        The same as T calls of `step`, with the memory of a world zeroed before each step at which
        its `episode_start` holds. The fused LSTM runs over the stretches between such steps; they
        are few, because only the worlds of one minibatch count.
        """
        inputs = self._core_inputs(visual, proprio)
        if not self.recurrent:
            return self.mean_head(self.feed_forward(inputs)), hidden
        num_steps = inputs.shape[0]
        boundaries = episode_start.any(dim=1).nonzero().flatten().tolist()
        begins = sorted({0, *boundaries})
        h, c = hidden
        outputs = []
        for begin, end in zip(begins, [*begins[1:], num_steps], strict=True):
            if begin in boundaries:
                goes_on = (~episode_start[begin]).to(h.dtype).unsqueeze(-1)
                h, c = h * goes_on, c * goes_on
            output, (h, c) = self.lstm(inputs[begin:end], (h.unsqueeze(0), c.unsqueeze(0)))
            h, c = h.squeeze(0), c.squeeze(0)
            outputs.append(output)
        return self.mean_head(torch.cat(outputs)), (h, c)

    def forward(
        self, pixels: Tensor, proprio: Tensor, h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step from raw inputs, as exported: (N, 3, H, W) uint8, (N, P), (N, H), (N, H)
        -> mean (N, A), h (N, H), c (N, H)."""
        features, *answers = self._look(pixels)
        located = self._read_answers(answers[0]) if answers else None
        mean, (h, c) = self._act(self._core_of(features, located, proprio), (h, c))
        return mean, h, c

    def reading(self, visual: Tensor) -> Tensor:
        """What an image adds to the core's first layer: (..., V) of `encode` -> (..., R).

        For an LSTM the preactivations of its gates, R = 4 H; where this is the same, so is the
        policy, whatever its memory, if no fused heads make more of it.
        """
        features, located = self._read(visual)
        seen = self._seen(features, located)
        if self.hand is not None:
            seen.append(self._place_numbers(located) / REACH)
        return linear(torch.cat(seen, dim=-1), self.reading_weight[:, self._proprio_width :])

    @property
    def reading_weight(self) -> nn.Parameter:
        """(R, inputs): the core's first layer; the columns of proprioception come first."""
        layer = self.lstm.weight_ih_l0 if self.recurrent else self.feed_forward[0].weight
        assert isinstance(layer, nn.Parameter)
        return layer

    def _read(self, visual: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the policy may read of an image: (..., V) of `encode` -> features (..., visual_dim)
        and, where there are heads, their answers (..., K) in deviations."""
        features = visual[..., : self.visual_dim]
        if self.aux_heads is None:
            return features, None
        return features, self._read_answers(self.answers(visual)[..., : self.target_dim])

    def _read_answers(self, answers: Tensor) -> Tensor:
        """As the heads give them -> as the policy reads them."""
        # They answer to the auxiliary loss alone: what they say stays a position.
        return answers.detach().clamp(-LOCATED_CLIP, LOCATED_CLIP)

    def _seen(self, features: Tensor, located: Tensor | None) -> list[Tensor]:
        """What of these it does read, by `reads`."""
        parts = {"both": (features, located), "located": (located,), "features": (features,)}
        return [part for part in parts[self.reads] if part is not None]

    def _place_numbers(self, located: Tensor | None) -> Tensor:
        """-> (..., 3 * places) m, in the world, as the heads see them."""
        assert located is not None
        return self._in_metres(located).index_select(-1, self._place_indices)

    def _core_inputs(self, visual: Tensor, proprio: Tensor) -> Tensor:
        return self._core_of(*self._read(visual), proprio)

    def _core_of(self, features: Tensor, located: Tensor | None, proprio: Tensor) -> Tensor:
        normalized = self.normalizer(proprio)
        if self.fused_heads is not None:
            assert located is not None
            located = self._read_answers(self.fused_heads(located, normalized))
        parts = [self.proprio_mlp(normalized), *self._seen(features, located)]
        if self.hand is not None:
            places = self._place_numbers(located).unflatten(-1, (-1, 3))
            away = (places - self.hand(proprio).unsqueeze(-2)) / REACH
            parts.append(away.flatten(-2))
        return torch.cat(parts, dim=-1)


def with_reach(former: dict[str, Tensor], inputs: int) -> dict[str, Tensor]:
    """The weights of an actor -> those of one whose core has more inputs behind the former ones,
    `inputs` in all, and acts as it does: nothing reads them yet."""
    name = "lstm.weight_ih_l0" if "lstm.weight_ih_l0" in former else "feed_forward.0.weight"
    return {**former, name: _widened(former[name], inputs)}


def _widened(weight: Tensor, inputs: int) -> Tensor:
    """(R, fewer) -> (R, inputs): zeros behind."""
    return pad(weight, (0, inputs - weight.shape[1]))


def with_maps(compact: dict[str, Tensor], fresh: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an actor whose encoder is `compact` -> those of one with `maps` that acts as
    it does: what it makes of an image does not depend on its maps yet, which are those of `fresh`,
    the weights of a new one.

    Raises KeyError or ValueError if the two are not alike in all else.
    """
    convolutions, linear = (0, 2, 4), 6
    names = {f"encoder.{i}.": f"encoder.0.convolutions.{i}." for i in convolutions}
    names |= {"encoder.5.": "encoder.0.keypoints.", f"encoder.{linear}.": "encoder.0.linear."}
    names |= {"encoder.7.": "encoder.1."}
    grown = dict(fresh)
    for name, value in compact.items():
        begin = next((old for old in names if name.startswith(old)), "")
        grown[names.get(begin, "") + name.removeprefix(begin)] = value
    inputs = fresh["encoder.0.linear.weight"].shape[1]
    grown["encoder.0.linear.weight"] = _widened(compact[f"encoder.{linear}.weight"], inputs)
    if grown.keys() != fresh.keys():
        raise ValueError(f"weights that differ: {', '.join(sorted(grown.keys() ^ fresh.keys()))}")
    return grown
