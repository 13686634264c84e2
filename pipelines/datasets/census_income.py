"""Census-Income (KDD), the public benchmark of the MMoE and PLE papers: two tasks without a funnel.

299,285 persons of the Current Population Survey 1994 and 1995. Tasks: `income` (above 50,000 dollars, 6.2 %) and
`never_married` (43 %). Two copies are read, whichever lies in the raw directory:

- the publisher's `census-income.data` and `census-income.test`: no header, 40 features, survey weight, label;
- `train.csv` and `test.csv` with a header and the 32 features that most benchmarks use.

Common columns have the same names and values in both, so a model's features differ only by the publisher's eight more.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from pipelines.convert import Progress, convert
from pipelines.datasets.public import PublicDataset, find_file, missing_files
from pipelines.errors import DataError
from pipelines.records import Layout
from pipelines.schema import Categorical, FileSplit, Label, Numeric, Schema

URL = "https://archive.ics.uci.edu/dataset/117/census+income+kdd"
PUBLISHED = ("census-income.data", "census-income.test")
WITH_HEADER = ("train.csv", "test.csv")

# The columns of the publisher's files in their order; behind each, the Census Bureau's name.
COLUMNS = (
    "age",  # AAGE
    "class_of_worker",  # ACLSWKR
    "detailed_industry_recode",  # ADTIND
    "detailed_occupation_recode",  # ADTOCC
    "education",  # AHGA
    "wage_per_hour",  # AHRSPAY
    "enroll_in_edu_inst_last_wk",  # AHSCOL
    "marital_stat",  # AMARITL
    "major_industry_code",  # AMJIND
    "major_occupation_code",  # AMJOCC
    "race",  # ARACE
    "hispanic_origin",  # AREORGN
    "sex",  # ASEX
    "member_of_a_labor_union",  # AUNMEM
    "reason_for_unemployment",  # AUNTYPE
    "full_or_part_time_employment_stat",  # AWKSTAT
    "capital_gains",  # CAPGAIN
    "capital_losses",  # CAPLOSS
    "dividends_from_stocks",  # DIVVAL
    "tax_filer_stat",  # FILESTAT
    "region_of_previous_residence",  # GRINREG
    "state_of_previous_residence",  # GRINST
    "detailed_household_and_family_stat",  # HHDFMX
    "detailed_household_summary_in_household",  # HHDREL
    "weight",  # MARSUPWT
    "migration_code_change_in_msa",  # MIGMTR1
    "migration_code_change_in_reg",  # MIGMTR3
    "migration_code_move_within_reg",  # MIGMTR4
    "live_in_this_house_1_year_ago",  # MIGSAME
    "migration_prev_res_in_sunbelt",  # MIGSUN
    "num_persons_worked_for_employer",  # NOEMP
    "family_members_under_18",  # PARENT
    "country_of_birth_father",  # PEFNTVTY
    "country_of_birth_mother",  # PEMNTVTY
    "country_of_birth_self",  # PENATVTY
    "citizenship",  # PRCITSHP
    "own_business_or_self_employed",  # SEOTR
    "fill_inc_questionnaire_for_veterans_admin",  # VETQVA
    "veterans_benefits",  # VETYN
    "weeks_worked_in_year",  # WKSWORK
    "year",
    "income",
)
# In the publisher's files only.
DETAIL_COLUMNS = (
    "detailed_industry_recode",
    "detailed_occupation_recode",
    "reason_for_unemployment",
    "migration_code_change_in_msa",
    "migration_code_change_in_reg",
    "migration_code_move_within_reg",
    "migration_prev_res_in_sunbelt",
    "fill_inc_questionnaire_for_veterans_admin",
)
# Labels, and the weight of the survey: how many people a row stands for, which says nothing of the person.
NO_FEATURES = ("income", "marital_stat", "weight")
_CODES = (
    "detailed_industry_recode",
    "detailed_occupation_recode",
    "own_business_or_self_employed",
    "veterans_benefits",
    "year",
)
# Bucket ids carry what is not monotone (never-married by age), the float beside them what is. Ages, weeks and numbers
# of persons get a bucket per value; of the amounts, mostly 0, quantile buckets set the zero apart.
_NUMERICS = {
    "age": Numeric(name="age", buckets=100, keep_value=True),
    "wage_per_hour": Numeric(name="wage_per_hour", transform="symlog", buckets=32, keep_value=True),
    "capital_gains": Numeric(name="capital_gains", transform="symlog", buckets=64, keep_value=True),
    "capital_losses": Numeric(name="capital_losses", transform="symlog", buckets=64, keep_value=True),
    "dividends_from_stocks": Numeric(name="dividends_from_stocks", transform="symlog", buckets=64, keep_value=True),
    "num_persons_worked_for_employer": Numeric(name="num_persons_worked_for_employer", buckets=10, keep_value=True),
    "weeks_worked_in_year": Numeric(name="weeks_worked_in_year", buckets=60, keep_value=True),
}
# The publisher's words for the label, and those of the copy with a header.
_INCOME_WORDS = {"- 50000.": "<=50K", "50000+.": ">50K"}
_BLOCK_BYTES = 8 << 20


def schema(published: bool) -> Schema:
    """The schema of one of the two copies.

    Args:
        published: Whether of the publisher's files (39 inputs) or of the copy with a header (31 inputs).

    Returns:
        The schema. The official test file is the test split; a tenth of the official training rows, by hash of the row
        number, is the validation split. `"?"` and `"NA"` are values like any other.
    """
    left_out = NO_FEATURES if published else NO_FEATURES + DETAIL_COLUMNS
    train, test = PUBLISHED if published else WITH_HEADER
    return Schema(
        features=tuple(_feature(column) for column in COLUMNS if column not in left_out),
        labels=(
            Label(name="income", positive=">50K"),
            Label(name="never_married", column="marital_stat", positive="Never married"),
        ),
        split=FileSplit(train=f"{train}*", test=f"{test}*", valid_fraction=0.1),
    )


def prepare(
    raw_dir: Path, out: Path, progress: Progress | None = None, layout: Layout = "blocks", shards: int = 8
) -> Path:
    """Converts the publisher's files if they lie in the directory, else the copy with a header.

    See `pipelines.datasets.prepare`. The publisher's files pass through a temporary Parquet beside `out`, since they
    have no header and a blank before every value.
    """
    published = [find_file(raw_dir, name) for name in PUBLISHED]
    if None not in published:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.raw-", dir=out.parent) as folder:
            pairs = zip(published, PUBLISHED, strict=True)
            files = [_normalised(file, Path(folder) / f"{name}.parquet") for file, name in pairs if file is not None]
            return convert(files, schema(published=True), out, layout=layout, shards=shards, progress=progress)
    with_header = [find_file(raw_dir, name) for name in WITH_HEADER]
    if None not in with_header:
        files = [file for file in with_header if file is not None]
        return convert(files, schema(published=False), out, layout=layout, shards=shards, progress=progress)
    raise missing_files(raw_dir, f"{' and '.join(PUBLISHED)} (plain or .gz)", URL)


def _feature(column: str) -> Categorical | Numeric:
    if column in _NUMERICS:
        return _NUMERICS[column]
    return Categorical(name=column, dtype="int" if column in _CODES else "string")


def _normalised(file: Path, target: Path) -> Path:
    """The publisher's file as Parquet with column names, values trimmed, the label in the words of the other copy."""
    text = pa.schema([(column, pa.string()) for column in COLUMNS])
    try:
        reader = pa.csv.open_csv(
            pa.input_stream(str(file), compression="detect"),
            read_options=pa.csv.ReadOptions(column_names=COLUMNS, block_size=_BLOCK_BYTES, use_threads=False),
            convert_options=pa.csv.ConvertOptions(column_types=text, strings_can_be_null=False),
        )
        with reader, pa.parquet.ParquetWriter(target, text) as writer:
            rows = 0
            for batch in reader:
                columns = [pc.utf8_trim_whitespace(column) for column in batch.columns]
                columns[-1] = _income(columns[-1], file, rows)
                writer.write_batch(pa.record_batch(columns, schema=text))
                rows += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        message = " ".join(str(error).split())
        raise DataError(f"{file}: not the publisher's file ({message}); fetch it again from {URL}") from None
    return target


def _income(column: pa.Array, file: Path, first_row: int) -> pa.Array:
    words = pa.array(_INCOME_WORDS)
    place = pc.index_in(column, value_set=words)
    if place.null_count:
        row = int(np.argmax(place.is_null().to_numpy(zero_copy_only=False)))
        known = " or ".join(repr(word) for word in _INCOME_WORDS)
        raise DataError(f"{file}, row {first_row + row + 1}: the income is {column[row].as_py()!r}; it must be {known}")
    return pa.array(_INCOME_WORDS.values()).take(place)


CENSUS_INCOME = PublicDataset(
    name="census_income",
    description="Census-Income (KDD), 299,285 persons of 1994 and 1995: tasks income (> 50K) and never_married",
    licence="CC BY 4.0; U.S. Census Bureau, donated to the UCI Machine Learning Repository by T. Lane and R. Kohavi",
    url=URL,
    files=PUBLISHED,
    prepare=prepare,
)
