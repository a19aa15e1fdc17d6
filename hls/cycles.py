"""Clock cycles of a launch: a recurrence over its packets that follows the RTL's own structure, with few constants.

Time is counted from start to done. Vector k of an engine, in the order of its packets:

    dispatched  one header and `words` data words after the packet before it, when the lane has room: its queue holds
                what `shell.queue_words` says, and as many more as its other queues hold are under way (`wattbit_lane`)
    fc1 ends    `fc1` cycles after it was dispatched or the vector before it ended, but no sooner than the expert's
                first half has arrived from DDR. The hidden FIFO holds one vector, fc2's replay buffer another: fc1
                stops when the registers behind its products are full too, until fc2 begins its last pass through the
                vector before the one before
    fc2 ends    `fc2` cycles after the vector before it, or after fc1 has ended, whose beats its first pass follows; no
                sooner than the expert's second half has arrived
    written     `words` beats of the shared port after the result is whole, one result after the other

A streamed engine's loader fetches each half of the next expert as soon as the datapath leaves the one before the
present (two slots), a beat a cycle. Constants count pipeline registers, measured once on the launches named below; the
table of held-out points is `results/fpga_models.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from wattbit.hls.engine_class import EngineClass
from wattbit.hls.memory import image_parts
from wattbit.hls.shell import queue_words
from wattbit.plan import ExpertShape

INSIDE = 12  # vectors in an engine and behind it, for which the lane has room (wattbit_lane)
WINDOW = 64  # words that a reader may have requested
BURST = 16

# Pipeline registers, from launches of three engines of 64 -> 128 -> 64 without stalls.
TO_DISPATCH = 12  # start to first header, less the memory's latency
THROUGH = 16  # dispatch to packed result, less the layers' own cycles and pipelines
TO_DONE = 10  # last response to done
RESULT_GAP = 3  # between two results on the write port
TO_LOAD = 2  # header to first beat, less the memory's latency
FROM_LOAD = 3  # those of THROUGH that the last beat of an image passes, less fc2's own pipeline
RESUME = 10  # from room in the hidden FIFO to fc1's next product and back, less fc1's own pipeline
REQUANTS = 7  # turns that a requantisation may have under way (finn-rtllib's requant_axi_decoupled)
FIFO_LEAST = 5  # beats that its fifo holds, however few are asked for


@dataclass(frozen=True)
class Port:
    """The memory behind an AXI port, in clock cycles; the defaults are those of the simulated one.

    read_latency: from an address to its first beat. write_latency: from the last beat to its response.
    """

    read_latency: int = 20
    write_latency: int = 10

    @property
    def read_cycles(self) -> float:
        """Cycles a beat of a long read: more than one where the window is shorter than the round trip."""
        return max(1.0, (self.read_latency + BURST + 3) / WINDOW)


@dataclass(frozen=True)
class Timing:
    """What a launch's cycles depend on in an engine.

    fc1, fc2: cycles a vector. first_pass: those of fc2 that follow fc1's beats, one for each beat of a hidden vector.
    pipe1, pipe2: pipeline registers of each layer's products and of the turns that its sums take at requantisation.
    rest: cycles that fc1 takes for the rest of a vector for which there was no room, once there is.
    image: beats of an expert's image, which are requant words and weights of fc1, then of fc2; zeros on chip.
    """

    fc1: int
    fc2: int
    first_pass: int
    pipe1: int
    pipe2: int
    rest: int
    image: tuple[int, int, int, int] = (0, 0, 0, 0)

    @classmethod
    def of(cls, spec: EngineClass, shape: ExpertShape, lane_bits: tuple[int, int]) -> "Timing":
        """lane_bits: bits of a requant lane in each layer; only a streamed engine's time depends on them."""
        products = shape.d_model * shape.d_hidden
        fc1, fc2 = products // (spec.pe1 * spec.simd1), products // (spec.pe2 * spec.simd2)
        turns = [pe // lanes for pe, lanes in zip((spec.pe1, spec.pe2), spec.requant_lanes(shape), strict=True)]
        pipe1, pipe2 = (
            _product_registers(spec, simd) + (n if n > 1 else 0)
            for simd, n in zip((spec.simd1, spec.simd2), turns, strict=True)
        )
        held = 2 + REQUANTS // turns[0] + (turns[0] > 1)  # beats in fc1's queue of sums, at requantisation, packed
        held += max(FIFO_LEAST - shape.d_hidden // spec.pe1, 0)
        rest = fc1 - held * (shape.d_model // spec.simd1) + pipe1 + RESUME
        image = (0, 0, 0, 0)
        if spec.streamed:
            a, b, c, d = (part.beats for part in image_parts(spec, shape, lane_bits))
            image = (a, b, c, d)
        return cls(fc1, fc2, shape.d_hidden // spec.simd2, pipe1, pipe2, rest, image)

    @property
    def per_vector(self) -> int:
        """Cycles a vector in steady state: those of the slower layer."""
        return max(self.fc1, self.fc2)

    @property
    def fill(self) -> int:
        """What the first vector takes longer than one in steady state, less pipeline registers."""
        return self.fc1 + self.fc2 - self.first_pass - self.per_vector

    @property
    def through(self) -> int:
        """Pipeline registers from dispatch to packed result."""
        return THROUGH + self.pipe1 + self.pipe2

    @property
    def after_load(self) -> int:
        """Those of them that the last beat of an image passes."""
        return FROM_LOAD + self.pipe2

    @property
    def last_pass(self) -> float:
        """Beats of fc2's weights that its last pass takes."""
        return self.image[3] * self.first_pass / self.fc2

    @property
    def load(self) -> int:
        """Beats of an expert's image."""
        return sum(self.image)


def _product_registers(spec: EngineClass, simd: int) -> int:
    """From operands to sums of products, in finn-rtllib's `mvu` or in `engine_products`."""
    levels = (simd - 1).bit_length()
    if spec.products == "logic":
        return 2 + (spec.precision.weight_bits > 2) + levels
    return 4 + max(levels, 1)


def overhead(words: int, port: Port) -> int:
    """Cycles of any launch beside those of its slowest engine and its pipelines, of vectors of `words` 64-bit words."""
    return TO_DISPATCH + port.read_latency + words + 1 + THROUGH + words + port.write_latency + TO_DONE


class _Lane:
    """One engine's vectors so far."""

    def __init__(self, timing: Timing, words: int) -> None:
        self.timing = timing
        self.queued = queue_words(words, timing.per_vector, timing.load) // words
        self.flying = 2 ** (self.queued + INSIDE - 1).bit_length() + 1  # and the output register
        self.left: list[float] = []  # when each vector had left the queue
        self.hidden: list[float] = []  # fc1's ends
        self.results: list[float] = []  # fc2's ends
        self.room: list[float] = []  # when fc2's last pass made some for the hidden vector after the next
        self.set = -1
        self.loader = 0.0  # when the loader is free
        self.begun = (0.0, 0.0)  # when each layer turns from the expert before to the present one

    def vector(self, header: float, end: float, index: int, port: Port) -> None:
        """Take the vector dispatched from `header` to `end`, for expert `index`."""
        timing, k = self.timing, len(self.hidden)
        before = (self.hidden[-1], self.results[-1]) if k else (0.0, 0.0)
        self.left.append(max(end, before[0]))
        start1, start2 = max(header + 1, before[0]), before[1]
        there1 = there2 = 0.0
        not_passed = timing.through - timing.after_load
        if timing.load and index != self.set:
            self.set = index
            requant1, weights1, requant2, weights2 = (beats * port.read_cycles for beats in timing.image)
            begun = (max(header, before[0]), max(header, before[1]))
            first = max(header + port.read_latency + TO_LOAD, self.loader, self.begun[0]) + requant1
            there1 = first + weights1
            second = max(there1, self.begun[1]) + requant2
            there2 = second + weights2
            start1, start2 = max(start1, first), max(start2, second - not_passed)
            self.loader, self.begun = there2, begun
        end1 = max(start1 + timing.fc1, there1)
        if k > 1:
            end1 = max(end1, self.results[k - 2] + timing.first_pass, self.room[k - 2] + timing.rest)
        end2 = max(end1 + timing.fc2 - timing.first_pass, start2 + timing.fc2)
        self.hidden.append(end1)
        self.results.append(max(end2, there2 - not_passed))
        last_pass = timing.last_pass * port.read_cycles if there2 - not_passed > end2 else timing.first_pass
        self.room.append(self.results[-1] - last_pass)


def launch(
    timings: Sequence[Timing],
    engines: Sequence[int],
    sets: Sequence[int],
    words: int,
    port: Port | None = None,
) -> float:
    """Modelled cycles of one launch of packets for `engines` and `sets`, in the order in which they are sent.

    words: 64-bit words of a vector. Stalls of the port beside its latency are not modelled.
    """
    port = port or Port()
    lanes = [_Lane(timing, words) for timing in timings]
    free = float(TO_DISPATCH + port.read_latency)  # when the next header is there
    for engine, index in zip(engines, sets, strict=True):
        lane = lanes[engine]
        k = len(lane.results)
        header = max(free, lane.results[k - lane.flying]) if k >= lane.flying else free
        end = header + words * port.read_cycles
        if k >= lane.queued:
            end = max(end, lane.left[k - lane.queued])
        lane.vector(header, end, index, port)
        free = end + port.read_cycles
    written = 0.0
    for result in sorted(end + lane.timing.through for lane in lanes for end in lane.results):
        written = max(written + words + RESULT_GAP, result + words)
    return written + port.write_latency + TO_DONE
