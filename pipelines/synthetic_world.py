"""The synthetic world behind a log: who exists, what each value does to the click and conversion logits.

    z_click      = b_click + sum of effects of fields + sum of effects of pairs of fields
    z_conversion = the same with the effects that the terms' roles make of those of click

Every effect is a table over the ids of one field or one pair, its entries multiples of 2**-16. Sums of such numbers are
exact in float32, so the logits, and with them the log, do not depend on the machine or on the order of summation. The
effect of a click history, where there is one, is rounded to such multiples (`pipelines.synthetic_history`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from pipelines.synthetic_history import HISTORY, HistoryTerm, Tastes, history_term
from pipelines.synthetic_numbers import on_grid, random_stream, zipf_cdf
from pipelines.synthetic_presets import Field, Preset

TASKS = ("click", "conversion")
CHUNK_ROWS = 65_536

Role = Literal["shared", "click_only", "conversion_only", "opposite"]
Ids = dict[str, np.ndarray]

_HISTORY_SHARE = 0.4
_SAMPLE_CHUNKS = 2
_TABLES, _ROWS, _SAMPLE = range(3)


class Population:
    """Users, items and contexts, and the ids that every field takes on an impression.

    Args:
        preset: The fields.
        users: Number of users.
        items: Number of items.
        user_zipf: Exponent of the users' activity.
        item_zipf: Exponent of the items' popularity.
        seed: Seed of the attributes.
    """

    def __init__(self, preset: Preset, users: int, items: int, user_zipf: float, item_zipf: float, seed: int) -> None:
        self.fields = {field.name: field for field in preset.fields}
        self._counts = {"user": users, "item": items}
        self._popularity = {"user": zipf_cdf(users, user_zipf), "item": zipf_cdf(items, item_zipf)}
        self._cdfs = {f.name: zipf_cdf(f.size, f.skew) for f in preset.fields if f.size}
        self._attributes: dict[str, np.ndarray] = {}
        self.lists: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for field in preset.fields:
            rng = random_stream(seed, _TABLES, field.name)
            if field.kind == "multi":
                self.lists[field.name] = self._draw_lists(field, rng)
            elif field.owner in self._counts and field.size:
                self._attributes[field.name] = self._draw_values(field, rng, self._counts[field.owner])

    def size(self, name: str) -> int:
        """Number of ids of a field; the id of a list is its owner, and a missing value has the last id."""
        field = self.fields[name]
        if field.kind == "multi" or not field.size:
            return self._counts[field.owner]
        return field.size + (field.missing > 0.0)

    def draw(self, rng: np.random.Generator, rows: int) -> Ids:
        """Draws impressions: the ids of every field, int32 or int64 `[rows]` each."""
        owners = {name: np.searchsorted(cdf, rng.random(rows), "right") for name, cdf in self._popularity.items()}
        ids: Ids = {}
        for name, field in self.fields.items():
            if name in self._attributes:
                ids[name] = np.take(self._attributes[name], owners[field.owner])
            elif field.owner in owners:
                ids[name] = owners[field.owner]
            elif field.owner == "context":
                ids[name] = self._draw_values(field, rng, rows)
        for name, field in self.fields.items():
            if field.of is not None:
                ids[name] = _history(owners["user"], ids[field.of], field)
        return ids

    def factors(self, name: str, rank: int, rng: np.random.Generator) -> np.ndarray:
        """Random effects of a field's ids: float64 `[size, rank]`. Smooth in a number, the mean over a list."""
        field = self.fields[name]
        if field.kind == "numeric":
            smooth = _smooth_basis(field.size) @ rng.standard_normal((3, rank))
            missing = rng.standard_normal((self.size(name) - field.size, rank))
            return np.concatenate([smooth, missing])
        if field.kind == "multi":
            offsets, values = self.lists[name]
            running = np.zeros((len(values) + 1, rank))
            np.cumsum(rng.standard_normal((field.size, rank))[values], axis=0, out=running[1:])
            return np.diff(running[offsets], axis=0) / np.maximum(np.diff(offsets), 1)[:, None]
        return rng.standard_normal((self.size(name), rank))

    def _draw_values(self, field: Field, rng: np.random.Generator, count: int) -> np.ndarray:
        values = np.searchsorted(self._cdfs[field.name], rng.random(count), "right").astype(np.int32)
        if field.missing:
            values[rng.random(count) < field.missing] = field.size
        return values

    def _draw_lists(self, field: Field, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        lengths = rng.integers(0, field.max_length, self._counts[field.owner], endpoint=True)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return offsets, np.searchsorted(self._cdfs[field.name], rng.random(offsets[-1]), "right")


@dataclass(frozen=True)
class Term:
    """One addend of the logits: the effect of a field, or of a pair of fields beyond their own effects.

    Attributes:
        fields: One or two names.
        role: How the two tasks' effects relate.
        effects: Per task float32 `[size]` or `[size, size]`, flattened; `None` where the task does not feel it.
    """

    fields: tuple[str, ...]
    role: Role
    effects: tuple[np.ndarray | None, np.ndarray | None]


@dataclass(frozen=True)
class Impressions:
    """Some drawn rows: ids by field; float32 probabilities of click, and of conversion given click; the outcomes.

    `would_convert` says whether the impression converts if it is clicked, whether it is or not. Among the ids is the
    click history of a world that has one: int32 `[rows, length]`, see `Tastes.draw`.
    """

    ids: Ids
    p_click: np.ndarray
    p_conversion: np.ndarray
    click: np.ndarray
    would_convert: np.ndarray


class World:
    """A population and the true logits of its impressions.

    Args:
        preset: Fields and interacting pairs.
        population: Who exists.
        seed: Seed of the effects and of the rows.
        rates: Mean probability of a click, and of a conversion given a click.
        correlation: Correlation of the two tasks' effects in a shared term.
        specific_share: Share of the terms that only one task feels.
        opposite_share: Share of the terms whose conversion effect is minus the click effect.
        strengths: Standard deviation of the sum of field effects, and of the sum of pair effects.
        history: Longest click history (0: there are none), and the standard deviation of its effect.
        rank: Rank of a pair's effect, and of the history's, before correlation mixes two of them.
    """

    def __init__(
        self,
        preset: Preset,
        population: Population,
        *,
        seed: int,
        rates: tuple[float, float],
        correlation: float,
        specific_share: float,
        opposite_share: float,
        strengths: tuple[float, float],
        history: tuple[int, float],
        rank: int,
    ) -> None:
        self._seed = seed
        self.population = population
        self._user = preset.fields[0].name
        self._tastes = self._make_tastes(preset.history_field, history[0])
        parts = [self._draw(_SAMPLE, i)[0] for i in range(_SAMPLE_CHUNKS)]
        self.sample = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        shares = (specific_share, opposite_share)
        mains: dict[tuple[str, ...], float] = {(field.name,): field.weight for field in preset.fields}
        pairs: dict[tuple[str, ...], float] = dict.fromkeys(preset.pairs, 1.0)
        self.terms = [
            *self._make_terms(mains, shares, correlation, strengths[0], rank),
            *self._make_terms(pairs, shares, correlation, strengths[1], rank),
        ]
        self.history = self._make_history(preset.history_field.name, correlation, history[1], rank)
        self.intercepts = (0.0, 0.0)
        self.intercepts = self._calibrated(rates)

    def impressions(self, chunk: int) -> Impressions:
        """Draws rows `chunk * CHUNK_ROWS` and following, `CHUNK_ROWS` of them."""
        ids, rng = self._draw(_ROWS, chunk)
        p_click, p_conversion = (sigmoid(z) for z in self.logits(ids))
        click, would_convert = (rng.random(CHUNK_ROWS) < p for p in (p_click, p_conversion))
        return Impressions(ids, p_click, p_conversion, click, would_convert)

    def logits(self, ids: Ids) -> tuple[np.ndarray, np.ndarray]:
        """The true logits of click, and of conversion given click: float32 `[rows]` each."""
        rows = len(next(iter(ids.values())))
        sums = (np.full(rows, self.intercepts[0], np.float32), np.full(rows, self.intercepts[1], np.float32))
        for term in self.terms:
            index = self.index(term.fields, ids)
            for total, effect in zip(sums, term.effects, strict=True):
                if effect is not None:
                    total += np.take(effect, index)
        if self.history is not None:
            for total, contribution in zip(sums, self.history.contributions(ids), strict=True):
                total += contribution.astype(np.float32)
        return sums

    def variances(self) -> dict[tuple[str, ...], tuple[Role, list[float]]]:
        """By fields each term's role, and the variance of its contribution to each task's logit over a sample."""
        found = {t.fields: (t.role, _variances(self._contributions(t, self.sample))) for t in self.terms}
        if self.history is not None:
            found[self.history.fields] = ("shared", _variances(self.history.contributions(self.sample)))
        return found

    def index(self, names: Sequence[str], ids: Ids) -> np.ndarray:
        """Where the rows stand in the table of a term over these fields: `[rows]`."""
        if len(names) == 1:
            return ids[names[0]]
        return ids[names[0]] * np.int64(self.population.size(names[1])) + ids[names[1]]

    def _draw(self, kind: int, chunk: int) -> tuple[Ids, np.random.Generator]:
        """The ids of a chunk, and the generator for its outcomes, which a history leaves as it is."""
        rng = random_stream(self._seed, kind, chunk)
        ids = self.population.draw(rng, CHUNK_ROWS)
        if self._tastes is not None:
            ids[HISTORY] = self._tastes.draw(ids[self._user], random_stream(self._seed, kind, chunk, HISTORY))
        return ids, rng

    def _contributions(self, term: Term, ids: Ids) -> tuple[np.ndarray, ...]:
        index = self.index(term.fields, ids)
        return tuple(np.zeros(len(index)) if e is None else np.take(e, index).astype(np.float64) for e in term.effects)

    def _make_tastes(self, field: Field, length: int) -> Tastes | None:
        if length == 0:
            return None
        rng = random_stream(self._seed, _TABLES, HISTORY)
        return Tastes(zipf_cdf(field.size, field.skew), self.population.size(self._user), length, rng)

    def _make_history(self, of: str, correlation: float, strength: float, rank: int) -> HistoryTerm | None:
        if self._tastes is None:
            return None
        rng = random_stream(self._seed, _TABLES, "effect", HISTORY, of)
        left, right = (self.population.factors(of, 2 * rank, rng) for _ in range(2))
        return history_term((HISTORY, of), self.sample, (left, right), correlation, strength)

    def _make_terms(
        self,
        weights: dict[tuple[str, ...], float],
        shares: tuple[float, float],
        correlation: float,
        strength: float,
        rank: int,
    ) -> list[Term]:
        kind = f"roles {len(next(iter(weights)))}"
        roles = _roles(list(weights), *shares, random_stream(self._seed, _TABLES, kind))
        terms = [self._make_term(key, roles[key], correlation, rank, weight) for key, weight in weights.items()]
        return self._scaled(terms, strength)

    def _make_term(self, names: tuple[str, ...], role: Role, correlation: float, rank: int, weight: float) -> Term:
        # The draws do not look at the role: changing a share changes the roles of some terms and nothing else.
        rng = random_stream(self._seed, _TABLES, "effect", *names)
        index = self.index(names, self.sample)
        click, other = (_standardised(self._random_effect(names, rank, rng), index) for _ in range(2))
        # Few values correlate by chance; without that chance the correlation is the one that was asked for.
        other = _standardised(other - np.mean(click[index] * other[index]) * click, index)
        conversion = {
            "shared": correlation * click + np.sqrt(1.0 - correlation**2) * other,
            "click_only": None,
            "conversion_only": other,
            "opposite": -click,
        }[role]
        seen = None if role == "conversion_only" else click
        root = np.sqrt(weight)
        return Term(names, role, (_times(seen, root), _times(conversion, root)))

    def _random_effect(self, names: tuple[str, ...], rank: int, rng: np.random.Generator) -> np.ndarray:
        if len(names) == 1:
            return self.population.factors(names[0], 1, rng)[:, 0]
        left, right = (self.population.factors(name, rank, rng) for name in names)
        # Centred factors leave no main effect in the product of fields that are independent.
        left -= left[self.sample[names[0]]].mean(axis=0)
        right -= right[self.sample[names[1]]].mean(axis=0)
        return (left @ right.T).ravel()

    def _scaled(self, terms: list[Term], strength: float) -> list[Term]:
        contributions = [self._contributions(term, self.sample) for term in terms]
        scales = []
        for task in range(len(TASKS)):
            deviation = float(np.std(sum(c[task] for c in contributions)))
            scales.append(strength / deviation if deviation > 0.0 else 0.0)
        return [
            Term(t.fields, t.role, (_rounded(t.effects[0], scales[0]), _rounded(t.effects[1], scales[1])))
            for t in terms
        ]

    def _calibrated(self, rates: tuple[float, float]) -> tuple[float, float]:
        click, conversion = (z.astype(np.float64) for z in self.logits(self.sample))
        b_click = _solve_intercept(click, np.ones(len(click)), rates[0])
        return b_click, _solve_intercept(conversion, sigmoid(click + b_click), rates[1])


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities float32; the exponential is taken in float64, so that its last bit is rounded away."""
    return (1.0 / (1.0 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def _history(users: np.ndarray, attribute: np.ndarray, field: Field) -> np.ndarray:
    """The item's attribute where the user has a history with it (by a hash of the two), else 0."""
    mixed = users.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + attribute.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    known = (mixed >> np.uint64(40)) < np.uint64(_HISTORY_SHARE * 2**24)
    return np.where(known, 1 + attribute % (field.size - 1), 0)


def _smooth_basis(levels: int) -> np.ndarray:
    """Three smooth functions of the normal score of each level of a number: float64 `[levels, 3]`."""
    z = normal_scores(levels)
    return np.stack([np.tanh(z), np.cos(1.2 * z), np.sin(2.0 * z)], axis=1)


def normal_scores(levels: int) -> np.ndarray:
    """The standard normal quantiles at the middles of `levels` equal shares: float64 `[levels]`."""
    return np.array([NormalDist().inv_cdf((i + 0.5) / levels) for i in range(levels)])


def _roles(
    names: list[tuple[str, ...]], specific_share: float, opposite_share: float, rng: np.random.Generator
) -> dict[tuple[str, ...], Role]:
    """A role per term. A larger share keeps the terms of a smaller one and adds to them."""
    opposite = int(opposite_share * len(names) + 0.5)
    specific = min(int(specific_share * len(names) + 0.5), len(names) - opposite)
    order = [names[i] for i in rng.permutation(len(names))]
    roles: dict[tuple[str, ...], Role] = dict.fromkeys(names, "shared")
    roles |= dict.fromkeys(order[:opposite], "opposite")
    for i, name in enumerate(reversed(order[len(order) - specific :])):
        roles[name] = "conversion_only" if i % 2 == 0 else "click_only"
    return roles


def _standardised(effect: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1 over the sample."""
    drawn = effect[index]
    return (effect - drawn.mean()) / drawn.std()


def _variances(contributions: Sequence[np.ndarray]) -> list[float]:
    return [float(np.var(contribution)) for contribution in contributions]


def _times(effect: np.ndarray | None, factor: float) -> np.ndarray | None:
    return None if effect is None else effect * factor


def _rounded(effect: np.ndarray | None, scale: float) -> np.ndarray | None:
    return None if effect is None else on_grid(effect, scale).astype(np.float32)


def _solve_intercept(logits: np.ndarray, weights: np.ndarray, rate: float) -> float:
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2.0
        mean = np.average(sigmoid(logits + middle).astype(np.float64), weights=weights)
        low, high = (middle, high) if mean < rate else (low, middle)
    return float(on_grid((low + high) / 2.0))
