"""Settings: where a value comes from, who wins, and what a mistake leads to."""

from pathlib import Path

import pytest

from config.load import Loaded, describe, load
from config.settings import Settings
from config.sources import SettingsError, run_directory


@pytest.fixture
def system(tmp_path: Path) -> Path:
    directory = tmp_path / "etc"
    (directory / "conf.d").mkdir(parents=True)
    return directory


def read(system: Path, environ: dict[str, str] | None = None, **more: object) -> Loaded:
    return load(environ=environ or {}, system_directory=system, **more)  # type: ignore[arg-type]


def test_without_any_source_the_defaults_run(system: Path) -> None:
    loaded = read(system)

    assert loaded.settings == Settings()
    assert loaded.warnings == []
    assert loaded.origins == {}


def test_each_stronger_source_wins_over_the_weaker_ones(system: Path) -> None:
    (system / "tegumentar.toml").write_text("[reflex]\nsyn_rate = 1\nudp_rate = 1\nicmp_rate = 1\ntotal_rate = 1\n")
    (system / "conf.d/10.toml").write_text("[reflex]\nudp_rate = 2\nicmp_rate = 2\ntotal_rate = 2\n")
    environ = {"TEGUMENTAR_REFLEX__ICMP_RATE": "3", "TEGUMENTAR_REFLEX__TOTAL_RATE": "3"}

    loaded = read(system, environ, options={"reflex": {"total_rate": 4}})

    reflex = loaded.settings.reflex
    assert (reflex.syn_rate, reflex.udp_rate, reflex.icmp_rate, reflex.total_rate) == (1, 2, 3, 4)
    assert loaded.origins["reflex", "syn_rate"] == str(system / "tegumentar.toml")
    assert loaded.origins["reflex", "udp_rate"] == str(system / "conf.d/10.toml")
    assert loaded.origins["reflex", "icmp_rate"] == "$TEGUMENTAR_REFLEX__ICMP_RATE"
    assert loaded.origins["reflex", "total_rate"] == "command line"


def test_files_of_conf_d_are_read_in_the_order_of_their_names(system: Path) -> None:
    (system / "conf.d/20-late.toml").write_text('log_level = "error"\n')
    (system / "conf.d/10-early.toml").write_text('log_level = "debug"\n')
    (system / "conf.d/ignored.txt").write_text("not toml at all")

    assert read(system).settings.log_level == "error"


def test_a_file_in_the_working_directory_is_not_read_unless_it_is_named(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tegumentar.toml").write_text('log_level = "debug"\n')
    monkeypatch.chdir(tmp_path)

    assert read(system).settings.log_level == "info"
    assert read(system, config=Path("tegumentar.toml")).settings.log_level == "debug"
    assert read(system, {"TEGUMENTAR_CONFIG": "tegumentar.toml"}).settings.log_level == "debug"


def test_directories_of_the_service_manager_win_over_defaults_and_lose_to_everything_else(system: Path) -> None:
    managed = {"STATE_DIRECTORY": "/s/one:/s/two", "RUNTIME_DIRECTORY": "/r", "LOGS_DIRECTORY": "/l"}

    loaded = read(system, managed | {"TEGUMENTAR_LOG_DIR": "/mine"})

    settings = loaded.settings
    assert (settings.state_dir, settings.run_dir, settings.log_dir) == (Path("/s/one"), Path("/r"), Path("/mine"))
    assert loaded.origins["state_dir",] == "$STATE_DIRECTORY"


def test_a_user_without_root_gets_directories_of_his_own(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/u/state")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")

    settings = read(system).settings

    assert settings.state_dir == Path("/home/u/state/tegumentar")
    assert settings.run_dir == Path("/run/user/1000/tegumentar")
    assert settings.log_dir == Path("/home/u/state/tegumentar/log")


@pytest.mark.parametrize("text", ["a,b", " a , b ,", '["a", "b"]', '["a","b"]'])
def test_a_list_in_the_environment_is_json_or_separated_by_commas(system: Path, text: str) -> None:
    assert read(system, {"TEGUMENTAR_INTERFACES": text}).settings.interfaces == ("a", "b")


def test_a_secret_may_come_from_the_credentials_directory(system: Path, tmp_path: Path) -> None:
    (tmp_path / "memory__postgres_dsn").write_text("postgres://u:p/w@h/d\n")
    (tmp_path / "unrelated__thing").write_text("x")

    loaded = read(system, {"CREDENTIALS_DIRECTORY": str(tmp_path)})

    target = loaded.settings.memory.postgres()
    assert target is not None
    assert (target.host, target.password) == ("h", "p/w")


def test_an_unknown_variable_with_our_prefix_is_told_with_the_nearest_name(system: Path) -> None:
    warnings = read(system, {"TEGUMENTAR_GATWAY__PORT": "1", "TEGUMENTAR_TEST_KAFKA": "x", "OTHER": "y"}).warnings

    assert len(warnings) == 1
    assert "TEGUMENTAR_GATWAY__PORT" in warnings[0]
    assert "TEGUMENTAR_GATEWAY__PORT" in warnings[0]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("GATEWAY_PORT", "GATEWAY__PORT"),
        ("POSTURE", "PERMEABILITY__POSTURE"),
        ("XDP__SYN_RATES", "REFLEX__SYN_RATE"),
        ("POSTGRES_DSN", "MEMORY__POSTGRES_DSN"),
    ],
)
def test_a_variable_without_its_section_or_with_another_one_is_recognised(
    system: Path, written: str, meant: str
) -> None:
    (warning,) = read(system, {f"TEGUMENTAR_{written}": "1"}).warnings

    assert f"perhaps TEGUMENTAR_{meant} was meant" in warning


# --- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TEGUMENTAR_LOG_LEVEL": "loud"}, ["log_level", "'loud'", "$TEGUMENTAR_LOG_LEVEL"]),
        ({"TEGUMENTAR_INTERFACES": "a/b"}, ["interfaces", "a/b", "network interface"]),
        ({"TEGUMENTAR_INTERFACES": "[1,"}, ["interfaces", "is refused"]),
        ({"TEGUMENTAR_PERMEABILITY__TOLERATE": "banana"}, ["permeability.tolerate", "banana", "address"]),
        ({"TEGUMENTAR_PERMEABILITY__POSTURE": "open"}, ["permeability.posture", "'explore'"]),
        ({"TEGUMENTAR_SUPERVISOR__FAILURES_MAX": "0"}, ["supervisor.failures_max", "greater than or equal to 1"]),
        ({"TEGUMENTAR_SUPERVISOR__HEARTBEAT_S": "nan"}, ["supervisor.heartbeat_s"]),
        ({"TEGUMENTAR_PERMEABILITY__MANAGEMENT_PORTS": "22,70000"}, ["permeability.management_ports"]),
    ],
)
def test_a_wrong_core_setting_stops_the_node_with_field_value_and_reason(
    system: Path, environ: dict[str, str], expected: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        read(system, environ)

    assert len(caught.value.problems) == 1
    for part in expected:
        assert part in caught.value.problems[0]


def test_all_mistakes_are_told_at_once(system: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        read(system, {"TEGUMENTAR_LOG_LEVEL": "loud", "TEGUMENTAR_PERMEABILITY__POSTURE": "open"})

    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("text", ["= 1", "[reflex", "a = 1\na = 2", "\x00"])
def test_a_file_that_is_no_toml_stops_the_node_and_is_named(system: Path, text: str) -> None:
    (system / "tegumentar.toml").write_text(text)

    with pytest.raises(SettingsError, match=r"tegumentar\.toml cannot be read"):
        read(system)


def test_a_named_file_that_is_absent_stops_the_node(system: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        read(system, config=tmp_path / "absent.toml")


def test_a_misspelt_key_of_the_core_stops_the_node_with_the_nearest_name(system: Path) -> None:
    (system / "tegumentar.toml").write_text('[permeability]\ntolerat = ["10.0.0.1"]\n')

    with pytest.raises(SettingsError, match=r"perhaps permeability\.tolerate was meant"):
        read(system)


def test_an_unknown_section_stops_the_node(system: Path) -> None:
    (system / "tegumentar.toml").write_text("[reflexes]\nsyn_rate = 3\n")

    with pytest.raises(SettingsError, match="reflexes"):
        read(system)


def test_nobody_can_set_the_problems_from_outside(system: Path) -> None:
    (system / "tegumentar.toml").write_text('[problems]\nreflex = "x"\n')

    with pytest.raises(SettingsError, match="problems"):
        read(system)


def test_a_wrong_value_of_an_optional_part_costs_that_value_alone(system: Path) -> None:
    (system / "tegumentar.toml").write_text('[reflex]\nsyn_rate = "fast"\nudp_rate = 7\nudp_rat = 1\n')

    loaded = read(system, {"TEGUMENTAR_GATEWAY__PORT": "99999"})

    assert loaded.settings.reflex.syn_rate == Settings().reflex.syn_rate
    assert loaded.settings.reflex.udp_rate == 7
    assert loaded.settings.gateway.port == 8085
    assert set(loaded.settings.problems) == {"reflex", "gateway"}
    assert "reflex.syn_rate = 'fast'" in loaded.settings.problems["reflex"]
    assert "perhaps reflex.udp_rate was meant" in loaded.settings.problems["reflex"]
    assert ("gateway", "port") not in loaded.origins


def test_a_section_written_as_a_value_is_told_as_such(system: Path) -> None:
    with pytest.raises(SettingsError, match="permeability"):
        read(system, options={"permeability": 3})


# --- secrets ----------------------------------------------------------------------------------------------


def test_no_secret_is_shown_anywhere(system: Path) -> None:
    environ = {
        "TEGUMENTAR_MEMORY__POSTGRES_DSN": "postgresql://u:hunter2/=+@h/d",
        "TEGUMENTAR_REDIS__PASSWORD": "hunter2",
    }

    loaded = read(system, environ)

    assert "hunter2" not in repr(loaded.settings)
    assert "hunter2" not in str(describe(loaded))
    shown = {row["name"]: row["value"] for row in describe(loaded)}
    assert shown["memory.postgres_dsn"] == "***"
    assert shown["redis.password"] == "***"


def test_a_wrong_secret_is_refused_without_being_repeated(system: Path) -> None:
    loaded = read(system, {"TEGUMENTAR_MEMORY__POSTGRES_DSN": "mysql://u:hunter2@h/d"})

    assert "hunter2" not in str(loaded.warnings)
    assert "memory.postgres_dsn" in loaded.settings.problems["memory"]
    assert loaded.settings.memory.postgres() is None


def test_every_setting_is_described_with_its_origin(system: Path) -> None:
    rows = describe(read(system, {"TEGUMENTAR_LOG_LEVEL": "debug"}))

    origins = {row["name"]: row["origin"] for row in rows}
    assert origins["log_level"] == "$TEGUMENTAR_LOG_LEVEL"
    assert origins["reflex.syn_rate"] == "default"
    assert "problems" not in origins


def test_the_example_file_names_only_real_settings_and_their_defaults() -> None:
    example = Path(__file__).parents[2] / "config/tegumentar.toml"

    commented = load(environ={}, config=example)

    assert commented.settings == Settings()
    assert commented.warnings == []


def test_every_line_of_the_example_file_may_be_uncommented(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "config/tegumentar.toml"
    lines = [
        line.removeprefix("#") if line.startswith("#") and not line.startswith("# ") else line
        for line in example.read_text().splitlines()
    ]
    awake = tmp_path / "awake.toml"
    awake.write_text("\n".join(lines))

    loaded = load(environ={}, config=awake)

    assert loaded.warnings == []
    named = {".".join(path) for path in loaded.origins}
    known = {row["name"] for row in describe(loaded)}
    assert named == known


@pytest.mark.parametrize(
    ("environ", "toml", "late_toml"),
    [
        ({}, "", ""),
        ({}, 'run_dir = "/run/one"\n', ""),
        ({}, 'run_dir = "/run/one"\n', 'run_dir = "/run/two"\n'),
        ({"RUNTIME_DIRECTORY": "/run/managed:/run/second"}, "", ""),
        ({"RUNTIME_DIRECTORY": "/run/managed"}, 'run_dir = "/run/one"\n', ""),
        ({"TEGUMENTAR_RUN_DIR": "/run/said", "RUNTIME_DIRECTORY": "/run/managed"}, 'run_dir = "/run/one"\n', ""),
    ],
)
def test_the_quick_way_to_the_run_directory_ends_where_the_whole_tree_does(
    system: Path, environ: dict[str, str], toml: str, late_toml: str
) -> None:
    (system / "tegumentar.toml").write_text(toml)
    (system / "conf.d/10.toml").write_text(late_toml)

    quick = run_directory(environ=environ, system_directory=system)

    assert quick == read(system, environ).settings.run_dir


def test_a_mistake_elsewhere_does_not_keep_anybody_from_the_service(system: Path) -> None:
    (system / "tegumentar.toml").write_text('run_dir = "/run/one"\nlog_level = "loud"\n')

    assert run_directory(environ={}, system_directory=system) == Path("/run/one")
