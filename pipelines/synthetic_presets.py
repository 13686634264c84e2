"""The fields of the synthetic worlds: what they are called, whom they belong to, how many values they have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Owner = Literal["user", "item", "context", "history"]
Kind = Literal["string", "int", "numeric", "multi"]


@dataclass(frozen=True)
class Field:
    """One column of the synthetic log.

    Attributes:
        name: The column and the feature.
        owner: What its value is a function of: the user, the item, the impression alone (`"context"`), or the user's
            history with an attribute of the item (`"history"`: that attribute, or 0 where there is no history).
        kind: `"string"`, `"int"`, `"numeric"` (a log-normal number) or `"multi"` (a list of strings).
        size: Number of values; 0 for the id of a user or an item: as many as there are.
        weight: Share of its main effect in the variance of a logit, relative to the other fields.
        skew: Zipf exponent of its values' frequencies, the first value being the most frequent; 0 is uniform.
        labels: The strings themselves; `None` makes them from `prefix` and a number.
        prefix: Start of the strings; `None`: the field's name.
        first: The smallest integer of an `"int"` field.
        missing: Share of missing values.
        scale: Mean and standard deviation of a number's logarithm.
        buckets: Quantile buckets that the schema asks for.
        max_length: Longest list of a `"multi"` field; the shortest is empty.
        table: Embedding table that the schema shares.
        of: The item's field that a `"history"` field looks at.
    """

    name: str
    owner: Owner
    kind: Kind
    size: int
    weight: float
    skew: float = 0.7
    labels: tuple[str, ...] | None = None
    prefix: str | None = None
    first: int = 0
    missing: float = 0.0
    scale: tuple[float, float] = (0.0, 1.0)
    buckets: int | None = None
    max_length: int = 0
    table: str | None = None
    of: str | None = None


@dataclass(frozen=True)
class Preset:
    """A world's fields, the pairs of fields that interact, and its default population.

    Attributes:
        fields: The columns, in order.
        pairs: Pairs of fields with an interaction, each with the same share in the variance of a logit.
        history_of: The item's field whose values a click history lists.
        users: Number of users.
        items: Number of items.
        user_zipf: Exponent of the users' activity: the share of rank r is proportional to r to the power of minus this.
        item_zipf: The same for the items' popularity.
    """

    fields: tuple[Field, ...]
    pairs: tuple[tuple[str, str], ...]
    history_of: str
    users: int
    items: int
    user_zipf: float = 0.5
    item_zipf: float = 0.9

    @property
    def history_field(self) -> Field:
        """The field that `history_of` names."""
        return next(field for field in self.fields if field.name == self.history_of)


_AGES = ("25-34", "35-44", "18-24", "45-54", "55-64", "65+", "under 18")

SMALL = Preset(
    fields=(
        Field("user_id", "user", "string", 0, 0.02, prefix="u"),
        Field("gender", "user", "string", 3, 0.06, labels=("female", "male", "other"), skew=1.0),
        Field("age_band", "user", "string", 7, 0.12, labels=_AGES),
        Field("city", "user", "string", 60, 0.08, missing=0.05),
        Field("member_level", "user", "int", 5, 0.10, first=1),
        Field("interests", "user", "multi", 40, 0.06, prefix="category", max_length=5, table="category"),
        Field("item_id", "item", "int", 0, 0.03, first=1),
        Field("category", "item", "string", 40, 0.14, table="category"),
        Field("brand", "item", "string", 200, 0.06),
        Field("price", "item", "numeric", 512, 0.08, scale=(3.0, 0.9)),
        Field("hour", "context", "int", 24, 0.06, skew=0.0),
        Field("device", "context", "string", 3, 0.06, labels=("android", "ios", "web")),
        Field("position", "context", "int", 10, 0.14, first=1, skew=0.5),
        Field("days_away", "context", "numeric", 512, 0.06, scale=(1.0, 1.3), missing=0.08, buckets=32),
    ),
    pairs=(
        ("gender", "category"),
        ("age_band", "device"),
        ("member_level", "position"),
        ("device", "hour"),
    ),
    history_of="category",
    users=10_000,
    items=2_000,
)


def _user(name: str, size: int, weight: float) -> Field:
    return Field(name, "user", "int", size, weight, first=1)


def _item(name: str, size: int, weight: float) -> Field:
    return Field(name, "item", "int", size, weight, first=1)


def _history(name: str, of: str, size: int, weight: float) -> Field:
    return Field(name, "history", "int", size, weight, of=of)


# The sizes of 101, 121-129, 205-207, 216, 301, 508, 509, 702 and 853 are those of the vocabularies published with
# AITM's code for Ali-CCP. No size was found for 109_14, 110_14, 127_14, 150_14 and 210: each takes that of the
# combination field of the same kind (category 508, shop 509, brand 702, intention 853).
ALI_CCP = Preset(
    fields=(
        _user("f101", 0, 0.04),
        _user("f109_14", 5_888, 0.03),
        _user("f110_14", 104_830, 0.01),
        _user("f127_14", 51_878, 0.01),
        _user("f150_14", 37_148, 0.01),
        _user("f121", 98, 0.12),
        _user("f122", 14, 0.10),
        _user("f124", 3, 0.04),
        _user("f125", 8, 0.08),
        _user("f126", 4, 0.05),
        _user("f127", 4, 0.05),
        _user("f128", 3, 0.04),
        _user("f129", 5, 0.06),
        _item("f205", 0, 0.04),
        _item("f206", 6_929, 0.08),
        _item("f207", 263_942, 0.02),
        _item("f210", 37_148, 0.03),
        _item("f216", 106_399, 0.02),
        _history("f508", "f206", 5_888, 0.06),
        _history("f509", "f207", 104_830, 0.02),
        _history("f702", "f216", 51_878, 0.02),
        _history("f853", "f210", 37_148, 0.03),
        Field("f301", "context", "int", 4, 0.10, first=1),
    ),
    pairs=(
        ("f122", "f206"),
        ("f124", "f508"),
        ("f121", "f301"),
        ("f125", "f301"),
        ("f122", "f127"),
        ("f126", "f129"),
    ),
    history_of="f206",
    users=238_635,
    items=467_298,
)

PRESETS = {"small": SMALL, "ali_ccp": ALI_CCP}
