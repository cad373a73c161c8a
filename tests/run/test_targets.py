from typing import Any

import pytest
from torch import nn

from lightning_compress.run.targets import (
    NETWORKS,
    SAFE,
    ConfigError,
    allowed,
    check,
    nodes,
    resolve,
    signature,
    unknown,
)


@pytest.mark.parametrize(
    "target",
    [
        "lightning_compress.models.small_conv.SmallConv",
        "lightning_compress.core.schedule.Cosine",
        "torch.nn.Linear",
        "torch.optim.SGD",
    ],
)
def test_building_blocks_are_allowed(target: str) -> None:
    assert resolve(target).__name__ == target.rpartition(".")[2]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "posix.system",
        "subprocess.Popen",
        "builtins.eval",
        "eval",
        "",
        None,
        3,
        "torch.load",
        "torch.hub.load",
        "torch.nnn.Linear",
        "torch.nn",
        "torch.nn.modules",
        "torch.nn.modules.module.torch.hub.load",
        "torch.nn.utils.xxx",
        "torch.nn.utils.parametrize.copy.deepcopy",
        "torch.nn.modules.module.warnings.warn",
        "torch.nn.modules.module.Any",
        "torch.nn.modules.module.OrderedDict",
        "torch.nn.functional.importlib.import_module",
        "torch.nn.Module.load_state_dict.__globals__",
        "lightning_compress.data.source.Path",
        "lightning_compress.data.source.datasets.load_dataset",
        "lightning_compress.models.load.torch.load",
        "lightning_compress.models.load.pickle.loads",
        "lightning_compress.run.config.importlib.import_module",
        "lightning_compress.run.config.compose",
        "lightning_compress.run.train.train",
        "lightning_compress.core.files.write_json",
        "lightning_compress.core.lookup.function",
        "lightning_compress.cli.main",
        "lightning_compress.tracking.wandb.log_run",
    ],
)
def test_nothing_else_is(target: Any) -> None:
    with pytest.raises(ConfigError, match="_target_"):
        resolve(target)


def test_names_imported_from_elsewhere_are_known_by_their_home() -> None:
    with pytest.raises(ConfigError, match="not allowed: it leads to pathlib"):
        resolve("lightning_compress.data.source.Path")


def test_the_users_own_packages() -> None:
    with pytest.raises(ConfigError, match=r"allow=\[my_package\]"):
        resolve("fractions.Fraction")
    assert resolve("fractions.Fraction", allowed(["fractions"])).__name__ == "Fraction"
    with pytest.raises(ConfigError, match="not allowed"):
        resolve("fractionsx.Fraction", allowed(["fractions"]))
    with pytest.raises(ConfigError, match="it leads to decimal"):
        resolve("fractions.Decimal", allowed(["fractions"]))
    for wrong in ("fractions", 5):
        with pytest.raises(ConfigError, match=r"allow must be a list of packages, as allow=\[my_package\]"):
            allowed(wrong)  # type: ignore[arg-type]


def test_packed_files_may_name_less() -> None:
    assert set(NETWORKS) < set(SAFE)
    with pytest.raises(ConfigError, match="not allowed"):
        resolve("lightning_compress.prune.method.Prune", NETWORKS)


def test_the_nearest_name_of_the_module_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'Linear'"):
        resolve("torch.nn.Linaer")


def test_nodes_are_found_at_any_depth() -> None:
    config = {"a": [{"_target_": "x", "b": {"_target_": "y"}}], "c": {"d": {"_target_": "z"}}}
    assert [(path, node["_target_"]) for path, node in nodes(config)] == [("a[0]", "x"), ("a[0].b", "y"), ("c.d", "z")]


def test_check_binds_arguments() -> None:
    linear = {"_target_": "torch.nn.Linear", "in_features": 1}
    check({"deep": [{"model": linear}]}, [])
    with pytest.raises(ConfigError, match=r"no 'in_feature' in torch.nn.Linear \(at deep\[0\]\.model\): did you mean"):
        check({"deep": [{"model": {"_target_": "torch.nn.Linear", "in_feature": 1}}]}, [])
    check({"model": linear | {"_partial_": True, "_convert_": "all"}}, [])
    check({"any": {"_target_": "lightning_compress.models.load.timm_model", "whatever": 1}}, [])  # takes **kwargs


def test_signature() -> None:
    assert [*signature({"_target_": "torch.nn.Dropout"})] == ["p", "inplace"]
    assert [*signature({"_target_": f"{nn.Linear.__module__}.Linear"})][:2] == ["in_features", "out_features"]


def test_unknown_without_a_near_name_lists_what_there_is() -> None:
    assert str(unknown("zzz", ["lr", "momentum"], where="SGD")) == "no 'zzz' in SGD: it has lr, momentum"
    assert str(unknown("zzz", [], where="here")) == "no 'zzz' in here: it has nothing"
