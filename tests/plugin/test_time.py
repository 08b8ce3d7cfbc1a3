"""Time as a cost: what tables say is what is promised, of gates and of what is cut."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from espnet_l0prune.cli import main
from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.feasibility import check_compatible
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.core.importance import per_cost
from espnet_l0prune.core.plan import Plan, plan_of
from espnet_l0prune.core.profile import Profile, rising, summary
from espnet_l0prune.core.selection import select
from espnet_l0prune.deploy.profiling import Variants, places_of, profile_model
from espnet_l0prune.deploy.timer import Conditions, time_encoders
from espnet_l0prune.plugin.counting import make_budget, promised_time
from espnet_l0prune.plugin.options import read_profile
from espnet_l0prune.testing.models import arguments, model
from espnet_l0prune.testing.runs import make_data, run
from tests.deploy.test_adopt import STOCK, follow
from tests.plugin.networks import KINDS, budget_of, copy_of, draw_plan, make

SIZES = {"output_size": 16, "attention_heads": 4, "num_blocks": 3}
BRANCHES = {"cgmlp_linear_units": 24, "cgmlp_conv_kernel": 3, "linear_units": 12}
CONFS = {
    "conformer": {**SIZES, "linear_units": 12, "cnn_module_kernel": 3},
    "e_branchformer": {
        **{**SIZES, **BRANCHES, "use_ffn": True, "macaron_ffn": True},
        "input_layer": "conv1d2",
    },
    "transformer": {**SIZES, "linear_units": 12, "input_layer": "linear"},
    "branchformer": {**SIZES, "cgmlp_linear_units": 24},
    "multiconv_conformer": {
        **SIZES,
        **{"linear_units": 12, "cgmlp_linear_units": 8, "multicgmlp_kernel_sizes": "3,5"},
    },
    "e_branchformer_ctc": {
        **{**SIZES, **BRANCHES, "use_ffn": True, "macaron_ffn": True},
        **{"use_cross_attention": [False, True, True], "input_layer": "conv2d8"},
    },
}
MEASURED = (
    *("heads", "src_heads", "ffn_channels", "conv_channels", "cgmlp_channels"),
    *("frontend_channels", "att_modules", "ffn_modules", "conv_modules", "blocks"),
)


def network(kind: str, seed: int = 0, **more):
    """An encoder with gates on all that a profile has, in float64."""
    conf = CONFS[kind] | more
    bare = make(kind, conf, [], 0)
    has = {unit for site in bare.sites() for unit in site.kinds}
    units = [unit for unit in MEASURED if unit in has]
    return make(kind, conf, units, seed)


def profile_of(encoder, seed: int = 0) -> Profile:
    """Random tables, rising, for all places that would be measured."""
    variants, rng = Variants(encoder), np.random.default_rng(seed)
    times: dict[tuple, float] = {("dense",): 90.0}
    ends = {}
    for key, _ in variants.plans():
        if key[0] == "blocks":
            times[key] = 50 + rng.random()
        elif key[0] == "front":
            times[key] = 1 + math.prod(key[1]) * 0.1 + rng.random() * 0.01
        elif len(key) == 3:  # fewer units take less
            start = ends.setdefault(key[:2], 40 * rng.random())
            times[key] = start + 0.1 * key[2]
    fixed, places = places_of(variants, times)
    budget = budget_of(encoder)
    return Profile(
        *(type(encoder).__mro__[2].__name__, encoder.output_size()),
        *(round(budget.totals["params"]), round(budget.totals["macs"])),
        *(10.0, "torch", 1, False, "none", 0.01, fixed, tuple(places)),
    )


def by_hand(profile: Profile, sites) -> float:
    """What scipy reads of the tables for a network without gates."""
    by_name, total = {site.name: site for site in sites}, profile.fixed
    for place in profile.places:
        if place.block and not by_name[place.block].sizes["blocks"]:
            continue
        if not place.sites:
            total += place.times[0]
            continue
        left = [
            max(by_name[name].sizes[kind], counts[0])
            for name, kind, counts in zip(
                place.sites, place.kinds, place.counts, strict=True
            )
        ]
        table = np.reshape(place.times, [len(x) for x in place.counts])
        total += float(RegularGridInterpolator(place.counts, table)(left)[0])
    return total


@pytest.mark.parametrize("kind", CONFS)
@settings(suppress_health_check=list(HealthCheck), max_examples=8, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_gates_promise_what_the_tables_say_of_the_cut(kind, data, seed):
    encoder = network(kind, seed)
    profile = profile_of(encoder, seed)
    decide_(encoder.sites(), draw_plan(data, encoder))
    budget = Budget(encoder.sites(), [], profile)
    small = copy_of(encoder)
    cut_(small, small.sites(), plan_of(encoder.sites()))
    found = budget.remaining("time")
    assert found == pytest.approx(by_hand(profile, small.sites()), rel=1e-12)
    assert found == pytest.approx(promised_time(small, profile), rel=1e-12)
    dense = profile.fixed + sum(place.times[-1] for place in profile.places)
    assert budget.totals["time"] == pytest.approx(dense, rel=1e-12)


def test_expected_time_reads_tables_at_the_expected_number():
    encoder = network("conformer")
    profile = profile_of(encoder)
    budget = Budget(encoder.sites(), [], profile)
    for gate in budget.gates.values():
        gate.log_alpha.data.fill_(100.0)
    units, gate = next(x for x in budget.gates.items() if x[0].kind == "heads")
    gate.log_alpha.data.fill_(-gate.shift)  # open with a probability of 1/2: 2 of 4
    place = next(p for p in profile.places if p.sites == (units.site.name,))
    gone = place.times[-1] - place.times[place.counts[0].index(2)]
    expected = float(budget.expected()["time"])
    assert expected == pytest.approx(gone / budget.totals["time"], rel=1e-6)


def test_the_gradient_is_that_of_the_interpolation():
    encoder = network("e_branchformer")
    budget = Budget(encoder.sites(), [], profile_of(encoder))
    torch.manual_seed(0)
    for gate in budget.gates.values():
        gate.log_alpha.data.copy_(torch.randn(gate.log_alpha.shape).double())
    alphas = [gate.log_alpha for gate in budget.gates.values()]
    gradients = torch.autograd.grad(budget.expected()["time"], alphas)
    for alpha, gradient in zip(alphas, gradients, strict=True):
        before = alpha.data.clone()
        alpha.data[0] = before[0] + 1e-5
        more = float(budget.expected()["time"])
        alpha.data[0] = before[0] - 1e-5
        less = float(budget.expected()["time"])
        alpha.data.copy_(before)
        assert float(gradient[0]) == pytest.approx(
            (more - less) / 2e-5, rel=1e-3, abs=1e-7
        )


@pytest.mark.parametrize("place", [-1, -2])
def test_the_gradient_at_a_measured_number_is_what_closing_a_unit_saves(place):
    """With all units open, and with as many as an inner point of a table has."""
    encoder = network("conformer", linear_units=16)
    profile = profile_of(encoder)
    budget = Budget(encoder.sites(), [], profile)
    measured = {
        (name, kind): numbers
        for p in profile.places
        for name, kind, numbers in zip(p.sites, p.kinds, p.counts, strict=True)
    }
    compared = 0
    for row, (site, kind) in enumerate(budget.gates):
        if (site.name, kind) not in measured:  # a whole module or block
            continue
        opened = budget.all_open()
        opened[row, measured[site.name, kind][place] :] = 0
        opened.requires_grad_()
        (slope,) = torch.autograd.grad(budget.left(opened)["time"], opened)
        less = opened.detach().clone()
        less[row, 0] -= 1e-6
        saved = float(budget.left(opened)["time"] - budget.left(less)["time"])
        assert float(slope[row, 0]) == pytest.approx(saved / 1e-6, rel=1e-4, abs=1e-6)
        assert float(slope[row, 0]) >= 0
        compared += 1
    assert compared == 3 * 3 + 2  # three branches of three blocks, two convolutions


def test_time_and_parameters_are_asked_for_together():
    encoder = network("conformer")
    counted = budget_of(encoder)
    budget = Budget(counted.sites, counted.terms, profile_of(encoder))
    check_compatible(budget, {"time": 0.5, "params": 0.4})
    scores = [torch.ones(len(gate.log_alpha)) for gate in budget.gates.values()]
    for row in per_cost(budget, scores, ["time"]):
        assert bool((row > 0).all())
        assert bool(row.isfinite().all())


@pytest.mark.parametrize("target", [0.3, 0.6])
def test_selection_meets_a_target_in_time(target):
    encoder = network("conformer")
    budget = Budget(encoder.sites(), [], profile_of(encoder))
    torch.manual_seed(0)
    for gate in budget.gates.values():
        gate.log_alpha.data.copy_(torch.randn(gate.log_alpha.shape).double())
    decide_(encoder.sites(), select(budget, {"time": target}))
    assert target <= budget.actual()["time"] < target + 0.05


@pytest.mark.parametrize("kind", [*CONFS, "cut conformer"])
def test_measured_differences_are_the_tables(kind):
    """Of an encoder whose time is a sum over places, all tables are found again."""
    encoder = network(kind.removeprefix("cut "))
    if kind not in CONFS:  # three kinds of blocks
        narrow = {"ffn_channels": [*range(9)]}
        left = {"encoders.0.feed_forward": narrow, "encoders.2": {"blocks": []}}
        cut_(encoder, encoder.sites(), Plan(left))
    profile = profile_of(encoder)
    variants = Variants(encoder)
    times = {}
    for key, kept in variants.plans():
        small = copy.deepcopy(encoder)
        plan = {
            s.name: {k: [*range(n)] for k, n in s.sizes.items()} for s in small.sites()
        }
        for name, kinds in kept.items():
            plan[name] |= kinds
        cut_(small, small.sites(), Plan(plan))
        times[key] = by_hand(profile, small.sites())
    assert len({variants.name_of(key) for key in times}) == len(times)
    fixed, places = places_of(variants, times)
    assert fixed == pytest.approx(profile.fixed)
    for mine, theirs in zip(places, profile.places, strict=True):
        assert dataclasses.replace(mine, times=()) == dataclasses.replace(
            theirs, times=()
        )
        assert np.allclose(mine.times, theirs.times, atol=1e-9)


def test_fewer_units_never_take_longer():
    assert rising([-1.0, 2.0, 1.5, 3.0]) == [0.0, 2.0, 2.0, 3.0]


def small_model(kind: str):
    args = arguments(decoder=None, model="espnet", model_conf={"ctc_weight": 1.0})
    args.encoder, args.encoder_conf = kind, CONFS[kind] | {"num_blocks": 2}
    built = ASRTask.build_model(args).eval()
    built.input_size = built.encoder.input_size = 20
    return built


@pytest.mark.parametrize(
    ("runtime", "kind"), [("torch", "conformer"), ("onnxruntime", "transformer")]
)
def test_a_model_is_measured(runtime, kind, monkeypatch):
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
        # a graph takes seconds to write: not all numbers of units
        monkeypatch.setattr("espnet_l0prune.deploy.profiling.SHARES", ())
    built, said = small_model(kind), []
    conditions = Conditions(0.6, runtime, minutes=0.0)
    profile = profile_model(built, conditions, 16_000, said.append)
    assert profile.spread > 0
    profile = dataclasses.replace(profile, spread=0.01)  # this machine may be busy
    assert Profile.from_plain(json.loads(json.dumps(profile.plain())), "x") == profile
    dense = profile.fixed + sum(place.times[-1] for place in profile.places)
    assert promised_time(built.encoder, profile) == pytest.approx(dense)
    assert sum(row["share"] for row in summary(profile)) == pytest.approx(1)
    assert any(" encoders, " in text for text in said)
    measured = {kind for place in profile.places for kind in place.kinds}
    gated = KINDS[kind](20, **CONFS[kind]).gated_sites()
    assert {kind for site in gated for kind in site.gates} <= measured | {"conv_modules"}


def plain(**changes) -> dict:
    return profile_of(network("conformer")).plain() | changes


def table(**changes) -> dict:
    """A profile whose first table is changed."""
    data = plain()
    first = {**data["places"][0], **changes}
    return data | {"places": (first, *data["places"][1:])}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "x is no profile of version 1. Expected what"),
        (plain(version=2), "x is no profile of version 1"),
        (plain(places=[{}]), r"x is damaged \(KeyError: 'block'\)"),
        (plain(size="16"), r"x is damaged \(TypeError: size is '16'\)"),
        (plain(runtime="tvm"), r"x is damaged \(ValueError: tvm with int8 False"),
        (plain(spread="1"), "and spread '1'; expected"),
        (
            plain(places=plain()["places"] * 999),
            r"damaged \(ValueError: it has \d+ places",
        ),
        (table(block=[]), r"has names \('embed.conv.0', .*, \[\]\)"),
        (table(sites=(1, 2)), r"has names \(1, 2, 'frontend"),
        (table(counts=((0, *range(1, 99)), (1, 2))), r"has counts of \[0, 1, 2"),
        (plain(fixed=0.0), "has fixed 0.0 and spread 0.01; expected a number in"),
        (plain(fixed=math.nan), "fixed nan and spread"),
        (plain(spread=True), "fixed .* and spread True"),
        (
            plain(seconds=1e12),
            r"x is damaged \(ValueError: sparsity_goal_conf: seconds is",
        ),
        (plain(threads=2**40), r"x is damaged \(ValueError: command line: --threads is"),
        (plain(int8=True), r"x is damaged \(ValueError: torch with int8 True"),
        (plain(spread=0.2), "has a spread of 20.0%; expected at most 10%"),
        (table(kinds=()), "has 2 sites, 0 kinds"),
        (table(counts=((2, 1), (1, 2))), r"has counts of \[2, 1\] at embed.conv.0 and"),
        (table(times=(1.0,)), "has 1 times for"),
        (table(times=(math.nan,) * 36), "has a time of nan"),
        (table(times=(-1.0,) * 36), "has a time of -1.0"),
    ],
)
def test_what_is_no_profile_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Profile.from_plain(data, "x")


def test_a_goal_in_time_needs_a_profile_that_fits():
    with pytest.raises(ValueError, match="target has time, but there is no profile"):
        Goal(target={"time": 0.5})
    with pytest.raises(ValueError, match="expected scope: encoder without per"):
        Goal(target={"time": 0.5}, profile=plain(), scope="model")
    with pytest.raises(
        ValueError, match="seconds is 5, but the profile was measured for"
    ):
        Goal(target={"time": 0.5}, profile=plain(), seconds=5.0)
    with pytest.raises(ValueError, match="of a ConformerEncoder of 32 features, and"):
        make_budget(model(), Goal(target={"time": 0.5}, profile=plain(size=32)))
    net = model()
    counted = make_budget(net, Goal()).totals
    fitting = {"parameters": round(counted["params"]), "macs": round(counted["macs"])}
    data = profile_of(copy.deepcopy(net.encoder).double()).plain() | fitting
    dense = data["fixed"] + sum(place["times"][-1] for place in data["places"])
    assert make_budget(net, Goal(profile=data)).totals["time"] == pytest.approx(dense)
    with pytest.raises(ValueError, match=r"is that of an encoder with .*, this one has"):
        make_budget(net, Goal(profile=data | {"macs": fitting["macs"] + 1}))
    with pytest.raises(ValueError, match="which compute in full until they are cut"):
        promised_time(network("conformer"), profile_of(network("conformer")))


def test_a_profile_of_another_encoder_is_refused():
    profile = profile_of(network("conformer"))
    for more, message in (
        ({"num_blocks": 2}, "has a block encoders.2, which this encoder has not"),
        ({"num_blocks": 4}, "has no times of encoders.3, which this encoder has"),
        ({"linear_units": 24}, "has 12 ffn_channels at .*, this encoder 24"),
        ({"use_cnn_module": False}, "this encoder none: it is a"),
    ):
        with pytest.raises(ValueError, match=message):
            Budget(network("conformer", **more).sites(), [], profile)
    other = make("conformer", CONFS["conformer"], ["head_dims"], 0)
    with pytest.raises(ValueError, match="has no times for fewer head_dims"):
        Budget(other.sites(), [], profile)
    dense = make("conformer", CONFS["conformer"], [], 0)
    with pytest.raises(ValueError, match="parameters, and that of the profile has 9;"):
        promised_time(dense, dataclasses.replace(profile, parameters=9))
    twice = (*profile.places, profile.places[-1])
    with pytest.raises(ValueError, match="the profile has one place twice: "):
        promised_time(dense, dataclasses.replace(profile, places=twice))
    wrong = dataclasses.replace(profile.places[-1], block="embed.conv.0")
    with pytest.raises(
        ValueError, match=r"has a block embed\.conv\.0, which this encoder"
    ):
        promised_time(dense, dataclasses.replace(profile, places=(wrong,)))


def test_blocks_that_speakers_share_are_another_kind():
    conf = {**CONFS["transformer"], "num_blocks_sd": 2, "num_inf": 2}
    variants = Variants(make("speakers", conf, [], 0))
    assert [len(kind.blocks) for kind in variants.kinds.values()] == [2, 2, 3]


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--int8 is set with --runtime torch"):
        Conditions(int8=True)
    streaming = {**SIZES, "linear_units": 12, "block_size": 8, "hop_size": 4}
    with pytest.raises(ValueError, match="cannot be measured with fewer blocks: its"):
        Variants(make("streaming_conformer", streaming, [], 0))
    pair = {"a": small_model("transformer"), "b": small_model("transformer")}
    pair["b"].encoder.input_size = pair["b"].input_size = 40
    with pytest.raises(ValueError, match="the encoders read features of sizes"):
        time_encoders(pair, Conditions(), 16_000, tmp_path, print)
    with pytest.raises(ValueError, match="none of whose blocks can be pruned"):
        Variants(torch.nn.Linear(1, 1))


@pytest.mark.slow
def test_from_a_profile_to_a_cut_that_keeps_its_promise(tmp_path, capsys, monkeypatch):
    # a test's machine is busy: how well it measures is not what is tested
    monkeypatch.setattr("espnet_l0prune.core.profile.NOISIEST", 100.0)
    data, dense, out = (tmp_path / name for name in ("data", "dense", "l0"))
    data.mkdir()
    make_data(data)
    conf = CONFS["conformer"] | {"num_blocks": 2}
    run(data, dense, encoder="conformer", encoder_conf=conf, **STOCK)
    file = tmp_path / "device.json"
    terms = ["--seconds", "0.8", "--minutes", "0.0"]
    command = ["profile", str(dense), "--out", str(file), *terms]
    code = main(command)
    assert code == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "frontend_channels x" in shown
    assert "what never goes" in shown
    assert main(command) == 1
    assert "exists; choose another --out" in capsys.readouterr().err

    words = ["--time", "0.4", "--profile", str(file), "--epochs", "6"]
    adopt = ["adopt", str(dense), "--out", str(out), *words, "--finetune_epochs", "1"]
    assert main(adopt) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "of the time" in printed
    follow(printed.split("Next:\n")[1].splitlines()[:2], "asr")
    cut = capsys.readouterr().out
    assert "sparsity of the encoder in time: 0.4" in cut
    assert "promised time of the encoder: " in cut
    config = yaml.safe_load((out / "pruned/config.yaml").read_text())
    assert config["sparsity_goal_conf"]["profile"]["places"]
    report = json.loads((out / "cut/cut.json").read_text())
    before, after = report["promised_time"]
    assert after <= 0.6 * before
    profile = read_profile(file)
    assert profile.seconds == config["sparsity_goal_conf"]["seconds"] == 0.8

    assert main(["report", str(out), "--out", str(tmp_path / "page")]) == 0
    assert "of the time" in (tmp_path / "page/index.html").read_text()
    capsys.readouterr()
    assert main(["inspect", str(out / "pruned"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["actual_sparsity"]["time"] == pytest.approx(report["sparsity"]["time"])

    experiments = [str(dense), str(out / "cut")]
    bench = ["bench", *experiments, "--profile", str(file), "--rounds", "2", "--json"]
    assert main(bench) == 0, capsys.readouterr().err
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["promised"] for row in rows] == pytest.approx([before, after])
    with pytest.raises(ValueError, match=r"the profile .* cannot be read"):
        read_profile(tmp_path / "none.json")
