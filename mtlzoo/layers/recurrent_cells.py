"""One step of a recurrent cell, for recurrences that cross features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras import ops

# A cell's gates in the order in which its joint kernel holds them. The candidate comes behind them.
GATES: dict[str, tuple[str, ...]] = {"gru": ("reset", "update"), "lstm": ("input", "forget", "output"), "vanilla": ()}


@dataclass(frozen=True)
class State:
    """What a cell hands from step to step.

    Attributes:
        hidden: `[B, d]`, what gates, towers and other cells read.
        memory: `[B, d]`, LSTM's cell state; the hidden state itself for the other cells.
        update: `[B, d]` float32, how far the last step's update gate was open; `None` where the cell has none.
    """

    hidden: Any
    memory: Any
    update: Any = None


@dataclass(frozen=True)
class Drive:
    """What a step's input adds to the cell's sums, bias included.

    Attributes:
        gates: `[B, G d]`, the cell's G gates side by side; `None`: there are no gates, each counts as 1.
        candidate: `[B, d]` or `[d]`.
        cross: `[B, d]`, what the candidate is multiplied with; `None`: it is not, and goes through tanh.
    """

    gates: Any
    candidate: Any
    cross: Any = None


def step_kernels(cell: str, state_kernel: Any, gated: bool) -> tuple[Any, ...]:
    """The kernels that a cell multiplies its state with, one per product; cut once, outside the recurrence.

    Args:
        cell: `"gru"`, `"lstm"` or `"vanilla"`.
        state_kernel: `[d, (G + 1) d]`: the gates, then the candidate; `[d, d]` where there are no gates.
        gated: Whether there are gates.

    Returns:
        GRU: gates and candidate, since the reset gate stands between them. All others read the state as it is: one.
    """
    if cell != "gru" or not gated:
        return (state_kernel,)
    width = state_kernel.shape[0]
    return tuple(ops.split(ops.convert_to_tensor(state_kernel), [2 * width], axis=-1))


def step(cell: str, state: State, drive: Drive, kernels: tuple[Any, ...]) -> State:
    """One step: see `RecurrentCross` for the equations.

    Args:
        cell: `"gru"`, `"lstm"` or `"vanilla"`.
        state: Before the step.
        drive: Of the step.
        kernels: From `step_kernels`.

    Returns:
        The state behind the step.
    """
    return _STEPS[cell](state, drive, kernels)


def _gru(state: State, drive: Drive, kernels: tuple[Any, ...]) -> State:
    s = state.hidden
    if drive.gates is None:
        (candidate_kernel,), reset_state, update = kernels, s, None
    else:
        gate_kernel, candidate_kernel = kernels
        reset, update = _opened(drive.gates + ops.matmul(s, gate_kernel), 2)
        reset_state = ops.cast(reset, s.dtype) * s
    candidate = drive.candidate + ops.matmul(reset_state, candidate_kernel)
    change = ops.tanh(candidate) - s if drive.cross is None else drive.cross * candidate
    s = s + (change if update is None else ops.cast(update, s.dtype) * change)
    return State(s, s, update)


def _lstm(state: State, drive: Drive, kernels: tuple[Any, ...]) -> State:
    h, c = state.hidden, state.memory
    sums = ops.matmul(h, kernels[0])
    if drive.gates is None:
        candidate, enter, forget, leave, update = sums + drive.candidate, 1.0, 1.0, 1.0, None
    else:
        gates, candidate = ops.split(sums, [3 * h.shape[-1]], axis=-1)
        candidate = candidate + drive.candidate
        opened = _opened(drive.gates + gates, 3)
        update = opened[0]
        enter, forget, leave = (ops.cast(gate, h.dtype) for gate in opened)
    found = ops.tanh(candidate) if drive.cross is None else drive.cross * candidate
    c = forget * c + enter * found
    return State(leave * ops.tanh(c), c, update)


def _vanilla(state: State, drive: Drive, kernels: tuple[Any, ...]) -> State:
    s = state.hidden
    candidate = drive.candidate + ops.matmul(s, kernels[0])
    s = ops.tanh(candidate if drive.cross is None else drive.cross * candidate + s)
    return State(s, s)


def _opened(sums: Any, gates: int) -> list[Any]:
    """Sigmoids in float32, gate by gate."""
    return ops.split(ops.sigmoid(ops.cast(sums, "float32")), gates, axis=-1)


_STEPS = {"gru": _gru, "lstm": _lstm, "vanilla": _vanilla}
