"""A recurrent cell that crosses features: one set of weights for every step, so depth costs no parameters."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mtlzoo.layers.mlp import checked_count
from mtlzoo.layers.per_part import PerPart
from mtlzoo.layers.recurrent_cells import GATES, Drive, State, step, step_kernels

AXES = ("depth", "field", "sequence", "task")


@keras.saving.register_keras_serializable(package="mtlzoo")
class RecurrentCross(keras.layers.Layer):
    """A recurrence whose steps are those of a cross network.

    **`axis="depth"`**: the steps are the layers of a cross network on u `[B, d]`. With `cell="gru"` and `s_0 = u`,

        r = sigmoid(A_r [u ; s_l ; k_l] + a_r)          z = sigmoid(A_z [u ; s_l ; k_l] + a_z)
        c = u * (A_c [r * s_l ; k_l] + a_c)             s_(l+1) = (1 - z) s_l + z (s_l + c) = s_l + z c

    where `*` is the product element by element, and k_l, if given, is another recurrence's state before step l, which
    this one reads and never changes. Output: `s_L`, `[B, d]`.

    - `cell="lstm"`: `i, f, o = sigmoid(A [u ; h_l ; k_l] + a)`, `C_(l+1) = f C_l + i u (A_c [h_l ; k_l] + a_c)`,
      `h_(l+1) = o tanh(C_(l+1))`, `C_0 = h_0 = u`.
    - `cell="vanilla"`: `h_(l+1) = tanh(u (A_c [h_l ; k_l] + a_c) + h_l)`.

    **`axis="field"`**: the steps are the fields of E `[B, F, e]`. The cell is the usual one (candidates through tanh,
    GRU's `s_(f+1) = (1 - z) s_f + z c`), its input a field and the field's product with what was read so far:

        m_f = E_f * (U s_f),      s_(f+1) = cell([E_f ; m_f ; k_f], s_f),   s_0 = 0

    Output: `[s_F ; mean_f m_f]`, `[B, units + e]`.

    **`axis="sequence"`**: the same over a list in time, E `[B, S, e]`, oldest first, with a candidate v `[B, c]`:
    `m_k = E_k * (U s_k + V v)`. Steps where the mask is 0 (padding) leave the state as it is, and the mean over m
    leaves them out. An empty list gives zeros. Output: `[B, units + e]`.

    **`axis="task"`**: the steps are the tasks along a funnel: `s_t = cell([x ; tau_t], s_(t-1))`, `s_0 = x` `[B, d]`
    (LSTM's memory too). The product of the kernel with the learned vector tau_t is itself what is learned. Output: all
    `s_t`, `[B, T, d]`.

    What u, the items or x add to the sums is computed once, before the recurrence. In a step, all gates are one
    product.

    Args:
        axis: See above.
        cell: `"gru"`, `"lstm"` or `"vanilla"` (no gates).
        steps: Number of layers (`"depth"`, default 3) or tasks (`"task"`); fields and lists bring theirs.
        units: Width of the state over fields and lists; elsewhere the input's.
        gates: `"learned"`, or `"open"`: every gate is 1 (depth only; GRU is then a cross network without gates).
        tied: Whether all steps have the same weights (depth only; without, depth costs parameters).
        gate_bias: Start of the biases of all gates over depth: a gate starts open by its sigmoid, 3 is .95. The cell
            then begins close to a cross network without gates and learns what to shut. (Over fields, lists and tasks
            the biases start at 0, and 1 for LSTM's forget gate.)
        return_states: Return `[output, s_0, ..., s_(L-1)]`: the state before each step, for others to read.
        kernel_initializer: Of each gate's and the candidate's kernel; a seed given in it is varied among them.
        **kwargs: Of `keras.layers.Layer`.

    Inputs: `u` or `[u, k_0, ..., k_(L-1)]`; `E` or `[E, k_0, ..., k_(F-1)]`; `[E, mask [B, S], v]`, the mask boolean or
    numbers, 0 at the padding; `x`. Outputs are in the compute dtype; sigmoids are computed in float32.

    Raises:
        ValueError: An unknown cell or axis, an argument that the axis does not have, an input of another shape, not one
            state per step.

    Example:
        >>> shared = RecurrentCross(steps=3, return_states=True)
        >>> u = np.ones((8, 32), "float32")
        >>> state, *states = shared(u)
        >>> private = RecurrentCross(steps=3)([np.ones((8, 16), "float32"), *states])
        >>> tuple(state.shape), len(states), tuple(private.shape)
        ((8, 32), 3, (8, 16))

    Source: our design after the three claims of Zhou and Yu, "DCRNN" (arXiv 2310.11777), which gives no equations that
    we could find. With every gate open GRU is DCN-v2 (Wang et al., WWW 2021) tied over depth; with an update gate that
    reads the state alone it is the gated cross of GDCN (Wang et al., CIKM 2023), tied.
    """

    def __init__(
        self,
        axis: str = "depth",
        cell: str = "gru",
        steps: int | None = None,
        units: int | None = None,
        gates: str = "learned",
        tied: bool = True,
        gate_bias: float = 3.0,
        return_states: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if axis not in AXES:
            raise ValueError(f"axis must be one of {', '.join(AXES)}, is {axis!r}")
        if cell not in GATES:
            raise ValueError(f"cell must be one of {', '.join(GATES)}, is {cell!r}")
        if gates not in ("learned", "open"):
            raise ValueError(f"gates must be 'learned' or 'open', is {gates!r}")
        if axis != "depth" and (gates != "learned" or not tied):
            raise ValueError(f"gates={gates!r} and tied={tied} are for axis='depth', the axis is {axis!r}")
        if (axis in ("depth", "task")) != (units is None):
            raise ValueError(f"units={units!r}: the axes 'field' and 'sequence' need it, the axis is {axis!r}")
        if axis == "task" and steps is None:
            raise ValueError("axis='task' needs steps, the number of tasks")
        if axis in ("field", "sequence") and steps is not None:
            raise ValueError(f"steps={steps!r}: over axis {axis!r} the input says how many there are")
        self.axis = axis
        self.cell = cell
        self._count = checked_count("steps", 3 if steps is None else steps) if units is None else 0
        self.steps = self._count or None
        self.units = None if units is None else checked_count("units", units)
        self.gates = gates
        self.tied = bool(tied)
        self.gate_bias = float(gate_bias)
        self.return_states = bool(return_states)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self._num_gates = len(GATES[cell]) if gates == "learned" else 0

    def build(self, input_shape: Any) -> None:
        """Creates one joint kernel per source of the cell's sums: input, other states, product, own state."""
        first, others = self._checked(input_shape)
        width = self.units or int(first[-1])
        gates, sums, sets = self._num_gates, self._num_gates + 1, 1 if self.tied else self._count
        self._draws = 0
        if self.axis != "depth":
            self.input_kernel = self._kernel("input_kernel", int(first[-1]), width, sums, 1)
        elif gates:
            self.input_kernel = self._kernel("input_kernel", width, width, gates, sets)
        if self.axis in ("field", "sequence"):
            embedding = int(first[-1])
            self.cross_kernel = self._kernel("cross_kernel", width, embedding, 1, 1)
            self.product_kernel = self._kernel("product_kernel", embedding, width, sums, 1)
        if self.axis == "sequence":
            self.candidate_kernel = self._kernel("candidate_kernel", int(others[1][-1]), embedding, 1, 1)
        elif others:
            self.context_kernel = self._kernel("context_kernel", int(others[0][-1]), width, sums, sets)
        self.state_kernel = self._kernel("state_kernel", width, width, sums, sets)
        rows = self._count if self.axis == "task" else sets
        self.bias = self.add_weight(shape=(rows, sums * width), initializer=self._bias_start, name="bias")

    def _kernel(self, name: str, rows: int, width: int, parts: int, sets: int) -> Any:
        """`[sets, rows, parts * width]`, every part `[rows, width]` of every set drawn by itself."""
        part = PerPart(self.kernel_initializer.clone(), sets * parts)
        start, self._draws = self._draws, self._draws + sets * parts

        def draw(shape: Any, dtype: Any = None) -> Any:
            parts_drawn = [part.of_part(start + i)((rows, width), dtype=dtype) for i in range(sets * parts)]
            return ops.stack([ops.concatenate(parts_drawn[i * parts : (i + 1) * parts], axis=1) for i in range(sets)])

        return self.add_weight(shape=(sets, rows, parts * width), initializer=draw, name=name)

    def _bias_start(self, shape: Any, dtype: Any = None) -> Any:
        names = (*GATES[self.cell][: self._num_gates], "candidate")
        starts = dict.fromkeys(names[:-1], self.gate_bias) if self.axis == "depth" else {"forget": 1.0}
        width = shape[1] // len(names)
        row = ops.concatenate([ops.full((width,), starts.get(name, 0.0), dtype=dtype) for name in names])
        return ops.tile(ops.expand_dims(row, 0), (shape[0], 1))

    def call(self, inputs: Any) -> Any:
        """Runs all steps; see the class."""
        output, states = self._run(inputs)
        return [output, *(state.hidden for state in states[:-1])] if self.return_states else output

    def update_gates(self, inputs: Any) -> list[Any]:
        """How far the update gate (LSTM: the input gate) is open in each step: 0 keeps the state, 1 takes it all.

        Args:
            inputs: Of the layer.

        Returns:
            Per step float32 `[B, d]`.

        Raises:
            ValueError: The cell has no gates, they are fixed, or the layer has not been built yet.
        """
        if not self._num_gates:
            raise ValueError(f"{self.name}: cell {self.cell!r} with gates={self.gates!r} has no gates to look at")
        if not self.built:
            raise ValueError(f"{self.name} has no weights yet: call it once before update_gates")
        given = inputs if isinstance(inputs, list | tuple) else [inputs]
        # Outside of a call nothing casts the weights, so the inputs become what the weights are.
        return [state.update for state in self._run([ops.cast(x, self.variable_dtype) for x in given])[1][1:]]

    def _run(self, inputs: Any) -> tuple[Any, list[State]]:
        first, *others = inputs if isinstance(inputs, list | tuple) else [inputs]
        if self.axis == "depth":
            return self._over_depth(first, others)
        return self._over_tasks(first) if self.axis == "task" else self._over_items(first, others)

    def _over_depth(self, u: Any, contexts: list[Any]) -> tuple[Any, list[State]]:
        cut = [self._num_gates * u.shape[-1]]
        sets = 1 if self.tied else self._count
        of_input = [source for i in range(sets) for source in self._depth_sources(u, i, self._count // sets, cut)]
        states = [State(u, u)]
        for layer, (kernels, gates, candidate) in enumerate(of_input):
            if contexts:
                sums = ops.matmul(contexts[layer], self.context_kernel[0 if self.tied else layer])
                of_gates, of_candidate = ops.split(sums, cut, axis=-1)
                gates, candidate = None if gates is None else gates + of_gates, candidate + of_candidate
            states.append(step(self.cell, states[-1], Drive(gates, candidate, cross=u), kernels))
        return states[-1].hidden, states

    def _depth_sources(self, u: Any, place: int, steps: int, cut: list[int]) -> list[tuple[tuple[Any, ...], Any, Any]]:
        """For each step that has these weights: kernels, what u adds to the gates (or `None`), the candidate's bias."""
        kernels = step_kernels(self.cell, self.state_kernel[place], bool(self._num_gates))
        gate_bias, candidate_bias = ops.split(self.bias[place], cut)
        gates = ops.matmul(u, self.input_kernel[place]) + gate_bias if self._num_gates else None
        return [(kernels, of_step, candidate_bias) for of_step in _for_steps(gates, steps)]

    def _over_items(self, items: Any, others: list[Any]) -> tuple[Any, list[State]]:
        """Over fields, with the states of another recurrence; or over a list, with its mask and a candidate."""
        count, width = items.shape[1], self.state_kernel.shape[1]
        cut = [self._num_gates * width]
        kernels = step_kernels(self.cell, self.state_kernel[0], bool(self._num_gates))
        of_items = ops.unstack(ops.matmul(items, self.input_kernel[0]) + self.bias[0], count, axis=1)
        items = ops.unstack(items, count, axis=1)
        mask, candidate = others if self.axis == "sequence" else (None, None)
        of_candidate = None if candidate is None else ops.matmul(candidate, self.candidate_kernel[0])
        # As many rows as the batch has, also where the batch is not known yet.
        start = ops.zeros_like(of_items[0][:, :width])
        states, products = [State(start, start)], []
        for k, from_list in enumerate(_for_steps(of_candidate, count)):
            before = states[-1]
            found = ops.matmul(before.hidden, self.cross_kernel[0])
            product = items[k] * (found if from_list is None else found + from_list)
            sums = of_items[k] + ops.matmul(product, self.product_kernel[0])
            if mask is None and others:
                sums = sums + ops.matmul(others[k], self.context_kernel[0])
            gates, from_candidate = ops.split(sums, cut, axis=-1)
            after = step(self.cell, before, Drive(gates if self._num_gates else None, from_candidate), kernels)
            if mask is not None:
                there = ops.cast(mask[:, k : k + 1], "bool")
                product, after = ops.where(there, product, ops.zeros_like(product)), _kept(there, after, before)
            products.append(product)
            states.append(after)
        if mask is None:
            mean = sum(products) / count
        else:
            there = ops.cast(ops.cast(mask, "bool"), products[0].dtype)
            mean = sum(products) / ops.maximum(ops.sum(there, axis=1, keepdims=True), 1.0)
        return ops.concatenate([states[-1].hidden, mean], axis=-1), states

    def _over_tasks(self, x: Any) -> tuple[Any, list[State]]:
        kernels = step_kernels(self.cell, self.state_kernel[0], bool(self._num_gates))
        of_input = ops.matmul(x, self.input_kernel[0])
        states = [State(x, x)]
        for task, sums in enumerate(_for_steps(of_input, self._count)):
            gates, candidate = ops.split(sums + self.bias[task], [self._num_gates * x.shape[-1]], axis=-1)
            states.append(step(self.cell, states[-1], Drive(gates if self._num_gates else None, candidate), kernels))
        return ops.stack([state.hidden for state in states[1:]], axis=1), states

    def _checked(self, shape: Any) -> tuple[Any, list[Any]]:
        """Shape of the first input, and those of the others."""
        first, *others = map(tuple, shape) if shape and isinstance(shape[0], list | tuple) else (tuple(shape),)
        rank = 3 if self.axis in ("field", "sequence") else 2
        if len(first) != rank or None in first[1:]:
            form = "[batch, items, width]" if rank == 3 else "[batch, width]"
            raise ValueError(f"{self.name}: axis {self.axis!r} needs an input {form} of known sizes, has {first}")
        if self.axis == "sequence" and (len(others) != 2 or others[0] != first[:2] or len(others[1]) != 2):
            raise ValueError(
                f"{self.name}: axis 'sequence' needs [items [batch, S, e], mask [batch, S], candidate [batch, c]], "
                f"has the shapes {[first, *others]}"
            )
        count = first[1] if self.axis == "field" else self.steps
        if self.axis == "task" and others:
            raise ValueError(f"{self.name}: axis 'task' has one input, is given {1 + len(others)}")
        if self.axis != "sequence" and others and len(others) != count:
            raise ValueError(f"{self.name}: must read one state per step, {count}, is given {len(others)}")
        return first, others

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Shape of the output, or with `return_states` the shapes of all that is returned."""
        first, _ = self._checked(input_shape)
        width = self.units or first[-1]
        if self.axis == "task":
            output: Any = (first[0], self.steps, width)
        else:
            output = (first[0], width if self.axis == "depth" else width + first[-1])
        count = self.steps or first[1] or 0
        return [output, *[(first[0], width)] * count] if self.return_states else output

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {
            **super().get_config(),
            "axis": self.axis,
            "cell": self.cell,
            "steps": self.steps,
            "units": self.units,
            "gates": self.gates,
            "tied": self.tied,
            "gate_bias": self.gate_bias,
            "return_states": self.return_states,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _for_steps(x: Any, steps: int) -> list[Any]:
    """The same for every step, the gradient the steps' in their order.

    Read by all steps as one tensor, it would get its gradient from an AddN. On a CPU that one adds three terms in an
    order that depends on timing, and the same seed would not give the same weights.
    """
    if x is None or steps < 3:
        return [x] * steps

    @ops.custom_gradient
    def read(x: Any) -> Any:
        return [ops.copy(x) for _ in range(steps)], lambda *of_steps: ops.sum(ops.stack(of_steps), axis=0)

    return list(read(x))


def _kept(there: Any, after: State, before: State) -> State:
    """The state behind a step where there is something to step over, the state before it elsewhere."""
    hidden, memory = (
        ops.where(there, new, old) for new, old in ((after.hidden, before.hidden), (after.memory, before.memory))
    )
    update = None if after.update is None else ops.where(there, after.update, ops.zeros_like(after.update))
    return State(hidden, memory, update)
