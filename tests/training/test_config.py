"""The configuration: layers, round trip, unknown names, refused values, schedules."""

import re

import pytest
import yaml

from ard_fast.data import DATASETS
from ard_fast.methods import METHODS
from ard_fast.train import main
from ard_fast.training.commandline import make_parser
from ard_fast.training.config import (
    PRESETS,
    TrainConfig,
    flag,
    for_method,
    for_teacher,
    parse,
    read_yaml,
    resolve,
    to_yaml,
)
from ard_fast.training.optimiser import learning_rate, relative_rate


@pytest.mark.parametrize(
    "flags",
    [
        {"method": "ard", "dataset": "cifar10", "data_dir": "d", "teacher": "t.safetensors", "milestones": (3, 5)},
        *({"method": method} for method in ("at", "kd", "mtard", "compare")),
    ],
)
def test_resolved_yaml_gives_the_same_configuration_back(tmp_path, flags):
    config = resolve(flags)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert resolve({}, file=read_yaml(path)) == config
    assert list(yaml.safe_load(to_yaml(config))) == list(TrainConfig.model_fields)


def test_a_comparison_smooths_labels_where_a_loss_has_a_cross_entropy():
    config = resolve({"compare_methods": ("at", "ard", "rslad"), "label_smoothing": 0.1})
    smoothing = [for_method(config, name, 0).label_smoothing for name in config.compare_methods]
    assert smoothing == [0.1, 0.0, None]


def test_later_layers_win():
    file = {"epochs": 7, "batch_size": 9}
    config = resolve({"batch_size": 11, "data_dir": "d", "teacher": "resnet18"}, file=file, preset="ard-paper")
    assert (config.temperature, config.epochs, config.batch_size) == (30.0, 7, 11)
    assert resolve({"method": "at", "lr": 0.3, "dataset": "digits"}, preset="at-paper").lr == 0.3
    assert all(set(preset) <= set(TrainConfig.model_fields) for preset in PRESETS.values())
    data = {"digits": None, "mnist": "d", "cifar10": "d"}  # a mirrored digit is no digit
    flips = [resolve({"method": "at", "dataset": name, "data_dir": place}).flip for name, place in data.items()]
    assert flips == [False, False, True]


def test_relative_rates_follow_the_schedule():
    config = resolve({"method": "at", "epochs": 8, "schedule": "multistep", "milestones": (2, 6), "lr": 0.3})
    assert [relative_rate(config, epoch) for epoch in (0, 1, 2, 6)] == pytest.approx([1.0, 1.0, 0.1, 0.01])
    assert relative_rate(config.replace(replays=4), 1) == pytest.approx(0.1)  # a pass is 4 epochs
    config = resolve({"method": "free", "replays": 4, "epochs": 15, "schedule": "cosine", "lr": 1.0})
    assert config.passes() == 4 and learning_rate(config, 16) == pytest.approx(0.0, abs=1e-12)  # ends with the last


def test_eps_alone_takes_its_steps_with_it_and_lr_alone_goes_for_all():
    config = resolve({"method": "at", "eps": 0.4})
    assert (config.step_size, config.eval_step_size) == (0.1, 0.1)
    assert resolve({"method": "at", "eps": 0.2, "step_size": 0.01}).step_size == 0.01
    config = resolve({"data_dir": "d", "eps": 0.1}, preset="trades-paper")  # whose steps belong to its own eps
    assert (config.step_size, config.eval_step_size) == (0.025, 0.025)
    config = resolve({"lr": 0.7})
    assert (for_method(config, "at", 0).lr, for_teacher(config, "teacher").lr) == (0.7, 0.05)
    assert resolve({"epochs": 2}).teacher_epochs is None


def test_a_comparison_gives_each_method_its_own_constants():
    config = resolve({"steps": 3})
    at, ard = for_method(config, "at", 1), for_method(config, "ard", 1)
    assert (at.seed, at.steps, at.temperature, at.lr) == (1, 3, None, 0.05)
    assert (ard.steps, ard.temperature, ard.alpha, ard.lr) == (3, 3.0, 1.0, 0.5)
    assert for_teacher(ard, "teacher") == for_teacher(config.replace(seed=1), "teacher")


def test_the_ema_recipe_suits_every_data_set_and_gives_way_to_flags():
    config = resolve({"dataset": "mnist", "data_dir": "d"}, preset="at-ema")
    plain = resolve({"dataset": "mnist", "data_dir": "d", "method": "at"})
    recipe = {"schedule": "onecycle", "weight_decay": 5e-4, "label_smoothing": 0.4}
    average = {"averaging": "ema", "ema_decay": 0.9995, "averaging_start_share": 0.0}
    assert config == plain.replace(method="at-ema", **recipe, **average)
    given = {"weight_decay": 0.0, "ema": 0.9, "label_smoothing": 0.0, "schedule": "cosine", "lr": 0.3}
    config = resolve(given, preset="at-ema")
    assert given.items() <= {**vars(config), "ema": config.ema_decay}.items()
    assert resolve({"ema_decay": 0.9}, preset="at-ema").averaging_start_share == 0.0
    with pytest.raises(ValueError, match="averaging: expected ema for method at-ema, got off"):
        resolve({"method": "at-ema"}, file=vars(resolve({"method": "at"})))  # of a finished run
    smoothing = [resolve({"alpha": alpha}, preset="ard-ema").label_smoothing for alpha in (1.0, 0.5)]
    assert (*smoothing, resolve({}, preset="rslad-ema").label_smoothing) == (0.0, 0.4, None)
    for name, method in METHODS.items():
        needs = dict.fromkeys(method.teachers, "resnet18")
        assert resolve({"dataset": "cifar10", "data_dir": "d", **needs}, preset=f"{name}-ema").averaging == "ema"


def test_a_comparison_trains_plainly_and_by_the_recipe_from_the_same_teacher():
    config = resolve({"compare_methods": ("at", "at-ema", "ard", "ard-ema")})
    runs = {name: for_method(config, name, 0) for name in config.compare_methods}
    assert runs["at-ema"] == resolve({"method": "at-ema", "compare_methods": config.compare_methods})
    assert [run.averaging for run in runs.values()] == ["off", "ema"] * 2
    teachers = [for_teacher(one, "teacher") for one in (config, runs["ard"], runs["ard-ema"])]
    assert teachers[0] == teachers[1] == teachers[2] and teachers[0].averaging == "off"
    by_recipe = [for_teacher(one.replace(teacher_method="at-ema"), "teacher") for one in (config, *runs.values())]
    assert all((one.averaging, one.schedule, one.weight_decay) == ("ema", "onecycle", 5e-4) for one in by_recipe)
    assert for_teacher(resolve({"method": "ard-ema", "schedule": "constant"}), "teacher").schedule == "constant"


def test_a_setting_that_the_method_does_not_have_is_refused():
    with pytest.raises(ValueError, match="temperature: method at has no such setting; it has attack_bn"):
        resolve({"method": "at", "temperature": 2.0})
    assert resolve({"temperature": 2.0}).temperature == 2.0  # ard, of the comparison, has it


def test_parity_switches_the_quirks_on_unless_told_otherwise():
    config = resolve({"method": "ard", "parity": True, "reduction": "batchmean"})
    assert (config.schedule, config.attack_bn, config.clean_branch, config.clamp_start) == ("ard", "train", True, False)
    assert config.reduction == "batchmean"
    assert resolve({"method": "ard", "parity": True, "schedule": "cosine"}).schedule == "cosine"
    assert for_method(resolve({"parity": True}), "ard", 0).schedule == "ard"
    assert not for_method(resolve({"parity": True}), "at-ema", 0).parity
    assert for_method(resolve({"parity": True, "schedule": "constant"}), "ard", 0).schedule == "constant"


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("multistep", [1.0, 0.1, 0.01, 0.01]),
        ("ard", [1.0, 0.1, 0.1, 0.1]),
        ("cosine", [1.0, 0.5, 0.146447, 0.0]),
        ("cyclic", [0.0, 1.0, 0.5, 0.0]),
        ("onecycle", [0.04, 0.811746, 0.283061, 4e-6]),
    ],
)
def test_schedules(schedule, expected):
    config = TrainConfig(lr=1.0, epochs=8, schedule=schedule)
    assert [learning_rate(config, epoch) for epoch in (0, 4, 6, 8)] == pytest.approx(expected, abs=1e-6)
    warm = config.replace(warmup_epochs=5.0)
    assert [learning_rate(warm, epoch) for epoch in (0, 4, 6)] == pytest.approx(
        [0.0, 0.8 * expected[1], expected[2]], abs=1e-6
    )


def test_ema_is_short_for_an_average_from_the_start():
    config = resolve({"ema": 0.99, "method": "at"})
    assert config == resolve({"averaging": "ema", "ema_decay": 0.99, "averaging_start_share": 0.0, "method": "at"})
    later = resolve({"averaging": "swa"}, file=vars(config))
    assert (later.averaging, later.ema) == ("swa", None)
    assert resolve({"ema": 0.9}, file=vars(later)).averaging == "ema"


def test_cropshift_takes_the_place_of_the_padded_crop():
    fashion = {"method": "at", "dataset": "fashion-mnist", "data_dir": "d"}
    assert [resolve({**fashion, **more}).crop_padding for more in ({}, {"cropshift": 4})] == [2, 0]
    assert resolve({"cropshift": 8, "data_dir": "d"}, preset="at-paper").crop_padding == 0
    assert resolve({**fashion, "dataset": "cifar10"}).crop_padding == 4


def test_another_optimiser_takes_its_own_learning_rate():
    config = resolve({"optimiser": "adamw", "data_dir": "d"}, preset="at-paper")
    assert (config.lr, config.momentum, config.weight_decay) == (1e-3, None, 2e-4)
    assert resolve({"data_dir": "d"}, preset="at-paper").momentum == 0.9
    of_run = resolve({"optimiser": "adam"}, file=vars(resolve({"method": "at", "lr": 0.3})))
    assert (of_run.lr, of_run.momentum) == (1e-3, None)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("eps", "8/255", 8 / 255),
        ("eps", "1e-2", 0.01),
        ("epochs", "12", 12),
        ("flip", "false", False),
        ("milestones", "3,5", (3, 5)),
        ("milestones", "none", None),
        ("compare_methods", "at,kd", ("at", "kd")),
        ("subset", None, None),
    ],
)
def test_values_from_text(name, text, value):
    assert parse({name: text}) == {name: value}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("epochs", "1.5", "epochs: expected a whole number, got '1.5'"),
        ("epochs", 1.5, "epochs: expected a whole number, got 1.5"),
        ("epochs", 3.0, "epochs: expected a whole number, got 3.0"),
        ("epochs", True, "epochs: expected a whole number"),
        ("eps", True, "eps: expected a number, got True"),
        ("flip", 1, "flip: expected true or false, got 1"),
        ("student_mean", "0.5,x", "student_mean: expected a number such as 8/255 or 0.03, got 'x'"),
        ("eps", "8/0", "eps: expected a number"),
        ("flip", "maybe", "flip: expected true or false"),
        ("student", 3, "student: expected text"),
        ("batch_size", None, "batch_size: expected a whole number"),
    ],
)
def test_wrong_types_are_refused(name, text, message):
    with pytest.raises(ValueError, match=message):
        parse({name: text})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": -0.1}, r"eps: expected 0 to 1, in units of pixels in \[0, 1\].*got -0.1"),
        ({"method": "at", "step_size": 8.0}, r"step_size: expected 0 to 1, in .* \(8/255, not 8\), got 8.0"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"lr": 0.0}, "lr: expected more than 0"),
        ({"lr": float("nan")}, "lr: expected a finite number"),
        ({"save_every_seconds": -1.0}, "save_every_seconds: expected at least 0"),
        ({"momentum": 1.0}, "momentum: expected 0 to below 1"),
        ({"alpha": 1.5}, "alpha: expected 0 to 1"),
        ({"milestones": (5, 3)}, "milestones: expected increasing epochs"),
        ({"device": "tpu"}, "device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"method": "arl"}, "method: unknown value 'arl'; did you mean 'ard'"),
        ({"student": "resnet8"}, "unknown student 'resnet8'; did you mean 'resnet18'"),
        ({"teacher_model": "resnet8"}, "unknown teacher_model 'resnet8'; did you mean 'resnet18'"),
        ({"student": "no_such_module:make"}, "student: cannot import 'no_such_module'"),
        ({"student_mean": (0.5,)}, "student_mean: mean and std go together"),
        ({"teacher_mean": (0.5,), "teacher_std": (0.0,)}, "teacher_std: expected numbers above 0"),
        (
            {"teacher": "digits-teacher", "teacher_weights": "ema"},
            "teacher_weights: expected none, unless teacher is a",
        ),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"method": "ard", "teacher": None}, "teacher: method ard needs --teacher"),
        ({"compare_methods": ()}, "compare_methods: expected a list of names, got"),
        ({"compare_methods": ("at", "at")}, "compare_methods: expected each method once, got at, at"),
        ({"seed": 2**63}, "seed: expected 0 to below"),  # run files hold seeds of 64 bits
        ({"milestones": (-1, 3)}, "milestones: expected increasing epochs"),
        ({"compare_methods": ("at", "ardd")}, "compare_methods: unknown value 'ardd'; did you mean 'ard'"),
        ({"dataset": "cifar10", "method": "at"}, "data_dir: cifar10 needs --data-dir"),
        ({"data_dir": "cifar10"}, "data_dir: expected none for digits, .*--dataset"),
        ({"method": "free", "awp_gamma": 0.01}, "awp_gamma: expected 0 for method free"),
        ({"method": "mart", "label_smoothing": 0.1}, "label_smoothing: method mart has no such setting"),
        (
            {"method": "ard", "label_smoothing": 0.1, "teacher": "digits-teacher"},
            "label_smoothing: expected 0 for method ard at alpha 1, whose loss has no cross-entropy, got 0.1",
        ),
        ({"optimiser": "adam", "momentum": 0.8}, "momentum: a setting of optimiser sgd, not of adam, got 0.8"),
        ({"optimiser": "adam", "nesterov": True}, "nesterov: a setting of optimiser sgd"),
        (
            {"method": "at", "warmup_epochs": 1.0, "schedule": "onecycle"},
            "warmup_epochs: expected 0 with schedule onec",
        ),
        (
            {"dataset": "fashion-mnist", "data_dir": "d", "teacher": "resnet18", "warmup_epochs": 1.0},  # a comparison
            "warmup_epochs: expected 0 with schedule onecycle of method at-ema",
        ),
        (
            {"method": "ard", "teacher_epochs": 2, "warmup_epochs": 3.0},
            "warmup_epochs: expected at most 2, the teacher",
        ),
        (
            {"compare_methods": ("kd", "ard"), "label_smoothing": 0.1},
            "label_smoothing: expected 0 for method kd, ard at al",
        ),
        (
            {"compare_methods": ("igdm", "ard"), "label_smoothing": 0.1},
            "label_smoothing: expected 0 for method igdm, ard",
        ),
        ({"method": "ard-ema", "parity": True}, "parity: method ard-ema is no published code's"),
        ({"method": "at", "milestones": (3, 5)}, "milestones: a setting of schedules multistep and ard, not of cosine"),
        ({"method": "at", "ema_decay": 0.9}, "ema_decay: a setting of averaging ema, not of off, got 0.9"),
        ({"method": "at", "teacher": "resnet18"}, "teacher: method at has none, got resnet18"),
        ({"method": "at", "peer": "resnet18"}, "peer: method at trains none, got resnet18"),
        ({"method": "peeraid", "peer": "runs/at"}, "unknown peer 'runs/at'"),
        ({"method": "peeraid", "teacher": "resnet18"}, "teacher: method peeraid has none, got resnet18"),
        ({"method": "ard", "clean_teacher": "resnet18"}, "clean_teacher: method ard has none, got resnet18"),
        ({"extra_data": "e", "extra_fraction": 1.0}, "extra_fraction: expected more than 0 to below 1, got 1.0"),
        ({"epochs": 3, "warmup_epochs": 4.0}, "warmup_epochs: expected at most 3, the epochs, got 4"),
        ({"method": "at-ema", "averaging": "off"}, "averaging: expected ema for method at-ema, got off"),
        ({"averaging": "swa"}, "averaging: expected ema for method at-ema, got swa"),
        ({"method": "ard-emma"}, "method: unknown value 'ard-emma'; did you mean 'ard-ema'"),
        ({"compare_methods": ("at", "at-em")}, "compare_methods: unknown value 'at-em'; did you mean 'at-ema'"),
        ({"method": "compare-ema"}, "method: unknown value 'compare-ema'"),
        ({"teacher_method": "ema"}, "teacher_method: unknown value 'ema'"),
        ({"ema": 0.9, "averaging": "swa"}, "ema: short for averaging, ema_decay, .* got averaging too"),
        ({"ema": 1.0}, "ema_decay: expected 0 to below 1"),
        ({"cropshift": 3, "crop_padding": 2}, "crop_padding: expected 0 with cropshift, which crops instead, got 2"),
        (
            {"cutout": 3, "teacher_cache": "d"},
            "teacher_cache: expected auto or off with extra_data, cropshift or cutout",
        ),
        ({"extra_fraction": 0.5}, "extra_fraction: expected none without extra_data, got 0.5"),
        ({"extra_data": "e", "teacher_cache": "d"}, "teacher_cache: expected auto or off with extra_data"),
        ({"method": "saad", "accumulate": 2}, "accumulate: expected 1 for method saad"),
        ({"method": "fgsm-rs", "eps": 1.0}, "step_size: expected 0 to 1, .*got 1.25"),
    ],
)
def test_what_cannot_run_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        resolve(changes)


def test_unknown_keys_of_a_file_get_the_nearest(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("epoch: 3\n")
    with pytest.raises(ValueError, match="unknown key 'epoch'; did you mean 'epochs'"):
        read_yaml(path)
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="must hold `key: value` lines, got list"):
        read_yaml(path)
    path.write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        read_yaml(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_yaml(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # a list that would have 10^8 parts if it were written out
        ("".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}' if n else 'y'] * 10)}]\n" for n in range(8)), "unknown key"),
        ("a: &a [1, [1, [1]]]\nmilestones: [*a, *a]\n", "milestones: expected a list of whole numbers"),
        ("epochs: 3\nseed: 1\nepochs: 4\n", "is not YAML: line 3: the key 'epochs' is there twice"),
        ("epochs: 3\n  seed: 1\n", "is not YAML: line 2: mapping values are not allowed here"),
        ("method: !!python/object/apply:os.system ['touch executed']\n", "could not determine a constructor"),
        ("method: !!python/name:os.system\n", "could not determine a constructor"),
        ("[" * 100_000, "nested too deeply|is not YAML"),
        ("epochs: " + "9" * 10_000, "is not YAML"),
        ("seed: 2020-99-99\n", "is not YAML"),
        (b"epochs: \xff\xfe", "is not YAML"),
        ("", "must hold `key: value` lines, got NoneType"),
        ("1: 2\n", "unknown key '1'"),
        ("? [1, 2]\n: 3\n", "is not YAML"),
        ("epochs: {a: 1}\n", "epochs: expected a whole number, got {'a': 1}"),
        ("milestones: [1, x]\n", r"milestones: expected a list of whole numbers, got \[1, 'x'\]"),
        ("student: 2020-01-01\n", "student: expected text, got datetime.date"),
        ("seed: " + "'" + "z" * 5000 + "'", r"seed: expected a whole number, got .{1,200}$"),
    ],
)
def test_hostile_and_broken_files_are_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as raised:
        read_yaml(path)
    assert "\n" not in str(raised.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.yaml"]


# ---- the command line ---------------------------------------------------------------------------------------------


def test_every_field_is_a_flag():
    flags = {option for action in make_parser()._actions for option in action.option_strings}
    assert {flag(name) for name in TrainConfig.model_fields} <= flags


def test_unknown_flags_get_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--epoch", "3"])
    assert stop.value.code == 2
    assert "unknown argument '--epoch'; did you mean --epochs?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eps", "-0.1"], "eps: expected 0 to 1"),
        (["--preset", "ard-paper"], "data_dir: cifar10 needs --data-dir"),
        (["--preset", "at-ema", "--method", "ard"], "preset: at-ema is a method, expected no other beside it, got ard"),
        (["--dataset", "cifar10", "--data-dir", "nowhere", "--method", "at"], "no cifar-10-batches-bin"),
        (["--method", "ard", "--teacher", "nowhere.safetensors"], "neither a network's name nor an existing"),
        (["--method", "at", "--student", "wrn-34-10", "--device", "cuda:99"], "device: "),
        (["--resume", "nowhere"], "resume: nowhere is not the folder of a run"),
        (["--resume", "nowhere", "--epochs", "3"], "resume: takes its settings from the run's config.yaml"),
        (["--config", "nowhere.yaml"], "config: no such file"),
        (["--subset", "5000"], "subset: expected 1 to 1078"),
    ],
)
def test_bad_arguments_end_before_any_work(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert "error: " in (error := capsys.readouterr().err) and message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["ard", "compare"])
def test_print_config_gives_a_file_that_repeats_the_run(tmp_path, capsys, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--method",
        method,
        "--eps",
        "25.5/255",
        "--epochs",
        "3",
        "--milestones",
        "1,2",
        "--flip",
        "--schedule=ard",
    ]
    assert main([*arguments, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "c.yaml").write_text(printed)
    assert main(["--config", "c.yaml", "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    config = resolve({}, file=read_yaml("c.yaml"))
    assert (config.eps, config.epochs, config.milestones, config.flip) == (0.1, 3, (1, 2), True)


@pytest.mark.parametrize("dataset", DATASETS)
def test_print_config_needs_neither_images_nor_teachers(tmp_path, capsys, monkeypatch, dataset):
    monkeypatch.chdir(tmp_path)
    assert main(["--dataset", dataset, "--method", "mtard", "--teacher", "nowhere.pt", "--print-config"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    file = read_yaml("c.yaml")
    if dataset not in ("digits", "mnist"):  # these have teachers of their own
        resolve({"data_dir": "d", "clean_teacher": "resnet18"}, file=file)
        for given, missing in (({"clean_teacher": "resnet18"}, "data_dir"), ({"data_dir": "d"}, "clean_teacher")):
            with pytest.raises(ValueError, match=f"{missing}: "):  # they are, however, to train
                resolve(given, file=file)


def test_help_shows_the_flags_used_most_and_help_all_every_default(capsys):
    texts = []
    for flags in (["--help"], ["--help-all"]):
        with pytest.raises(SystemExit) as stop:
            main(flags)
        assert stop.value.code == 0
        texts.append(capsys.readouterr().out)
    short, whole = texts
    first = re.findall(r"^  (--[a-z-]+)", short.split("most used:")[1].split("\n\n")[0], re.MULTILINE)
    wanted = (
        "method dataset data-dir download student teacher epochs batch-size lr ema eps seed device out preset config"
    )
    assert first == [f"--{name}" for name in [*wanted.split(), "resume", "print-config"]]
    assert "--temperature" not in short and "[8/255; digits: 0.2" in " ".join(short.split())
    assert "\n  python -m ard_fast.train --resume runs/ard\n" in short
    text = " ".join(whole.split())
    assert {flag(name) for name in TrainConfig.model_fields} <= set(re.findall(r"--[a-z0-9-]+", text))
    assert "[200; digits: 15; mnist: 3]" in text and "[none; digits: digits-teacher; mnist: mnist-teacher]" in text
    assert re.search(
        r"--steps INT [^\[]*\[[^\]]*\b10\b[^\]]*; digits: 7; mnist: 5\]", text
    )  # the methods', the data set's
    assert "rslad, absld: 5/6" in text and re.search(
        r"--lr FLOAT [^\[]*default: the method's[^\[]*\[digits: 0.05; mnist: 0.1\]", text
    )
    assert not re.search(r"\w-\n", short + whole.replace("--\n", ""))  # no name is broken
