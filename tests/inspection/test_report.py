"""The report of a real run: well-formed, whole, with the numbers that were found, and safe whatever names hold."""

from __future__ import annotations

import base64
import io
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from mtlzoo.callbacks import MaskDensity
from mtlzoo.callbacks.mask_density import masked_layers
from mtlzoo.inspection import (
    GateWeights,
    divergences,
    features_by_share,
    field_sharing,
    importance_numbers,
    numbers,
    permutation_importance,
    sharing,
    total,
    write_report,
)
from mtlzoo.inspection.mask_sections import mask_sections
from mtlzoo.inspection.report import rendered
from mtlzoo.inspection.section import Picture, Section, Table
from mtlzoo.inspection.sharing import pattern_names
from mtlzoo.inspection.tickets import read_tickets
from mtlzoo.models import NCS4CVR, SharedBottom
from mtlzoo.training import Run, RunConfig, open_run, train
from pipelines import DataError
from pipelines.schema import Schema

_VOID = {"meta", "img", "br", "link"}
ROUNDS = [{"density": 1.0, "value": 0.31}, {"density": 0.5, "value": 0.305}, {"density": 0.25, "value": None}]
LOTTERY = {
    "monitor": "loss",
    "tasks": {"click": {"rounds": ROUNDS, "chosen": 1}, "conversion": {"rounds": ROUNDS, "chosen": 0}},
}


class Page(HTMLParser):
    """Tags, tables and images of a page; refuses tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.images: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        named = dict(attrs)
        if tag == "img":
            assert named["alt"]
            self.images.append(named["src"])
        self.addresses += [value for key, value in attrs if key in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "h2":
            self.headings.append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] == "h2":
            self.headings[-1] += data

    def table(self, first_heading: str) -> list[list[str]]:
        return next(table for table in self.tables if table[0][0] == first_heading)


def assert_image(address: str) -> None:
    kind, content = address.removeprefix("data:image/").split(";base64,")
    raw = base64.b64decode(content, validate=True)
    if kind == "svg+xml":
        assert ElementTree.fromstring(raw).tag.endswith("svg")
    else:
        Image.open(io.BytesIO(raw)).verify()


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> Run:
    """Learned masks, some of them closed, and densities in the history."""
    config = RunConfig(
        model="ncs4cvr",
        arguments={"trunk_units": [12, 6], "embedding_dim": 4, "l0": 1e-4, "initial_density": 0.52},
        data=str(dataset.folder),
        epochs=2,
        batch_size=256,
    )
    return train(config, tmp_path_factory.mktemp("runs") / "run", callbacks=[MaskDensity()])


@pytest.fixture
def lottery_run(run, tmp_path) -> Run:
    """The run as one that found tickets leaves it."""
    shutil.copytree(run.folder, tmp_path / "lottery")
    (tmp_path / "lottery/lottery.json").write_text(json.dumps(LOTTERY))
    return open_run(tmp_path / "lottery")


def page_of(run: Run, folder: Path) -> Page:
    return Page(write_report(run, folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> Page:
    return page_of(run, tmp_path_factory.mktemp("page"))


def percents(shares) -> list[str]:
    return [f"{share:.1%}" for share in shares]


def test_every_number_is_that_of_sharing(run, page):
    model = run.model()
    layers = sharing(model)
    assert 0 < layers[0].shares["dead"] < 1, "the run must have closed some connections and not all"
    for heading, parts in (("layer", [*layers, total(layers)]), ("field", field_sharing(model))):
        head, *rows = page.table(heading)
        assert head[2:] == ["open for click", "open for conversion", *parts[0].shares]
        expected = [
            [p.name, f"{p.connections:,}", *percents(p.density.values()), *percents(p.shares.values())] for p in parts
        ]
        assert rows == expected
    overlaps = [table for table in page.tables if table[0] == ["layer", "tasks", "overlap", "independent masks"]]
    assert overlaps[0][1:] == [
        [p.name, "click and conversion", f"{p.overlaps[0].jaccard:.3f}", f"{p.overlaps[0].independent:.3f}"]
        for p in [*layers, total(layers)]
    ]


def test_the_page_says_what_was_trained(run, page):
    settings = dict(page.table("setting")[1:])
    assert settings["model"] == "ncs4cvr"
    assert settings["data"] == run.config.data
    assert settings["epochs"] == f"2 of at most 2; epoch {run.metrics['best_epoch']} was kept"
    assert settings["argument trunk_units"] == "[12, 6]"
    aucs = {row[0]: row[1] for row in page.table("task")[1:]}
    assert aucs == {task: f"{v['auc']:.4f}" for task, v in run.metrics["valid"]["tasks"].items()}


def test_densities_are_those_of_the_history(run, page):
    _, *rows = page.table("epoch")
    best = run.metrics["best_epoch"]
    assert rows == [
        [
            f"{epoch} (kept)" if epoch == best else str(epoch),
            f"{logs['click_density']:.1%}",
            f"{logs['conversion_density']:.1%}",
        ]
        for epoch, logs in enumerate(run.history, start=1)
    ]


def test_the_page_needs_nothing_else(lottery_run, tmp_path):
    page = page_of(lottery_run, tmp_path)
    assert page.headings == [
        "What was trained", "Sharing by layer", "Overlap", "Fields", "Heat maps", "Density over training", "Tickets",
    ]  # fmt: skip
    assert len(page.images) == 3 + 2 + 1 + 1
    for image in page.images:
        assert_image(image)
    assert all(address.startswith(("data:image/", "#section-")) for address in page.addresses)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert [path.name for path in tmp_path.iterdir() if path.name != "lottery"] == ["report.html"]


def test_tickets_are_those_of_the_run(lottery_run, tmp_path):
    table = next(t for t in page_of(lottery_run, tmp_path).tables if t[0][1] == "round")
    assert table == [
        ["task", "round", "density", "validation loss"],
        ["click", "0", "100.0%", "0.31000"],
        ["click", "1 (chosen)", "50.0%", "0.30500"],
        ["click", "2", "25.0%", "-"],
        ["conversion", "0 (chosen)", "100.0%", "0.31000"],
        ["conversion", "1", "50.0%", "0.30500"],
        ["conversion", "2", "25.0%", "-"],
    ]


def test_a_run_without_densities_says_so(lottery_run, tmp_path):
    history = [{k: v for k, v in logs.items() if not k.endswith("_density")} for logs in lottery_run.history]
    (lottery_run.folder / "history.json").write_text(json.dumps(history))
    text = write_report(lottery_run, tmp_path / "report.html").read_text()
    assert "holds no densities" in text
    assert not any(table[0][0] == "epoch" for table in Page(text).tables)


def test_set_masks_are_explained(lottery_run, tmp_path, dataset):
    """Closed masks for one task: its part of every bar is gone."""
    model = lottery_run.model()
    for layer in masked_layers(model):
        gates = layer.gates.numpy()
        gates[1] = -1.0
        layer.gates.assign(gates)
    page = Page(write_report(lottery_run, tmp_path / "report.html", model).read_text())
    for row in page.table("layer")[1:]:
        assert row[3] == row[5] == row[6] == "0.0%"  # open for conversion, conversion only, shared
    assert numbers(model)["total"]["density"]["conversion"] == 0
    assert np.isclose(sum(numbers(model)["layers"][0]["shares"].values()), 1)


@pytest.mark.parametrize("labels", [("click",), ("click", "cart", "purchase")])
def test_other_numbers_of_tasks(run, dataset, labels):
    plain = dataset.schema.to_dict()
    plain["labels"] = [{"name": name} for name in labels]
    model = NCS4CVR(Schema.model_validate(plain), trunk_units=(6, 4), embedding_dim=2, mask="lottery")
    sections = {section.title: section for section in mask_sections(run, model)}
    assert ("Overlap" in sections) == (len(labels) > 1)
    assert sections["Sharing by layer"].tables[0].headings[2:] == (
        *(f"open for {label}" for label in labels), *pattern_names(labels),
    )  # fmt: skip
    assert len(sections["Heat maps"].pictures) == 2
    assert sections["Density over training"].text.startswith("The masks were set before this training")
    assert Page(rendered("title", list(sections.values()))).headings == list(sections)


@pytest.fixture(scope="module")
def importance(run):
    return permutation_importance(run.model(), run.dataset(), repeats=2)


def test_every_number_is_that_of_the_importance(run, importance, tmp_path):
    page = Page(write_report(run, tmp_path / "report.html", importance=importance).read_text())
    assert page.headings[1:4] == ["Feature importance", "Divergence between tasks", "Sharing by layer"]
    rows = next(table for table in page.tables if table[0][1] == "measured on")
    assert rows[1:] == [
        [
            name,
            "impressions with click" if name == "conversion" else "all impressions",
            *(f"{count:,}" for count in (task.rows, task.positives, task.sampled)),
            f"{task.score:.4f}",
        ]
        for name, task in importance.tasks.items()
    ]
    shown = {row[0]: dict(zip(importance.tasks, row[1:], strict=True)) for row in page.table("feature")[1:]}
    assert list(shown) == features_by_share(importance)
    for name, task in importance.tasks.items():
        for feature in task.features:
            interval = f"({feature.low:.5f} to {feature.high:.5f})"
            assert shown[feature.feature][name] == f"{feature.mean:.5f} {interval}"
    assert page.table("tasks")[1:] == [
        [" and ".join(pair.tasks), f"{pair.total_variation:.3f}", f"{pair.rank_correlation:.3f}"]
        for pair in divergences(importance)
    ]
    assert len(page.images) == 3 + 1 + 6  # rankings, shares, and what masks have


def test_numbers_of_the_importance_are_plain_data(importance):
    plain = json.loads(json.dumps(importance_numbers(importance)))
    for name, task in importance.tasks.items():
        means = {entry["feature"]: entry["mean"] for entry in plain["tasks"][name]["features"]}
        assert means == {feature.feature: feature.mean for feature in task.features}
        assert list(means) == [feature.feature for feature in task.ranking]
    assert [pair["tasks"] for pair in plain["divergence"]] == [list(pair.tasks) for pair in divergences(importance)]


def test_a_task_without_importance_is_a_dash(run, importance, tmp_path):
    tasks = dict(importance.tasks)
    tasks["conversion"] = replace(tasks["conversion"], score=None, features=())
    report = write_report(run, tmp_path / "report.html", importance=replace(importance, tasks=tasks)).read_text()
    page = Page(report)
    assert {row[2] for row in page.table("feature")[1:]} == {"-"}
    assert "There is none for conversion" in report
    assert [row[0] for row in page.table("tasks")[1:]] == ["click and ctcvr"]


def test_importance_of_nothing_is_told(run, importance, tmp_path):
    tasks = {name: replace(task, score=None, features=()) for name, task in importance.tasks.items()}
    page = Page(write_report(run, tmp_path / "r.html", importance=replace(importance, tasks=tasks)).read_text())
    assert "Divergence between tasks" not in page.headings
    assert page.table("feature") == [["feature", "click", "conversion", "ctcvr"]]


def test_features_that_are_not_drawn_are_mentioned(run, importance, tmp_path):
    """23 features: the table has all, the figures the first 20."""
    first = importance.tasks["click"].features[0]
    many = tuple(replace(first, feature=f"f{i:02d}", mean=(23 - i) / 100, low=0.0, high=1.0) for i in range(23))
    tasks = {name: replace(task, features=many) for name, task in importance.tasks.items()}
    report = write_report(run, tmp_path / "r.html", importance=replace(importance, tasks=tasks)).read_text()
    assert report.count("Not drawn: 3 further features, none above 0.03000.") == 2 * 3  # caption and alternative text
    assert "Not drawn: the 3 features with the smallest shares." in report
    assert len(Page(report).table("feature")) == 1 + 23


def test_gates_come_last(run, tmp_path):
    weights = {"click": {"click/gdcn": 0.25, "shared/gdcn": 0.75}}
    gates = GateWeights("test", ("click/gdcn", "shared/gdcn"), weights, weights)
    page = Page(write_report(run, tmp_path / "report.html", gates=gates).read_text())
    assert page.headings[-1] == "Gate weights"
    assert page.table("module")[1:] == [
        ["click/gdcn", "0.250 (deviation 0.250)"],
        ["shared/gdcn", "0.750 (deviation 0.750)"],
    ]


def test_a_model_with_nothing_to_explain_is_refused(run, dataset, tmp_path):
    plain = SharedBottom(dataset.schema, bottom_units=(4,), tower_units=(4,), embedding_dim=2)
    with pytest.raises(ValueError, match="shared_bottom has nothing to explain without the importance"):
        write_report(run, tmp_path / "report.html", plain)
    assert not (tmp_path / "report.html").exists()


def test_hostile_names_stay_text():
    name = '<script>alert("1")</script> & <b>'
    pixel = "data:image/png;base64,AAAA"
    section = Section(name, name, (Table((name, "x"), ((name, name),)),), (Picture(f'" onerror="{name}', pixel),))
    html = rendered(name, [section])
    page = Page(html)
    assert not {"script", "b"} & set(page.tags)
    assert page.tables == [[[name, "x"], [name, name]]]
    assert page.headings == [name]
    assert page.images == [pixel]


def test_a_hostile_data_directory_stays_text(lottery_run, tmp_path):
    path = lottery_run.folder / "config.json"
    saved = json.loads(path.read_text())
    saved["training"]["data"] = "data/<b>&amp;"
    path.write_text(json.dumps(saved))
    page = page_of(open_run(lottery_run.folder), tmp_path)
    assert dict(page.table("setting")[1:])["data"] == "data/<b>&amp;"
    assert "b" not in page.tags


def test_an_older_report_is_replaced_and_directories_are_made(run, tmp_path):
    path = tmp_path / "new" / "report.html"
    write_report(run, path)
    path.write_text("old")
    assert write_report(run, path) == path
    assert "ncs4cvr" in path.read_text()
    with pytest.raises(DataError, match="is a directory; name the file to write"):
        write_report(run, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"monitor": "speed"}, "damaged at monitor"),
        ({"tasks": {}}, "damaged at tasks"),
        ({"tasks": {"click": {"rounds": ROUNDS, "chosen": 3}}}, "chosen must be below the number of rounds, 3, is 3"),
        (
            {"tasks": {"click": {"rounds": [{"density": 2, "value": 1}], "chosen": 0}}},
            "damaged at tasks.click.rounds.0",
        ),
    ],
)
def test_a_damaged_search_is_named(tmp_path, change, message):
    (tmp_path / "lottery.json").write_text(json.dumps({**LOTTERY, **change}))
    with pytest.raises(DataError, match=f"lottery.json: damaged.*{message.split('damaged ')[-1]}"):
        read_tickets(tmp_path)


def test_no_search_is_no_error(tmp_path):
    assert read_tickets(tmp_path) is None
