# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""service_folder: do, repeat, change, check mode, and the link that ansible.builtin.file follows."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import tempfile

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.llm.plugins.modules import service_folder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")


@pytest.fixture
def place():
    root = pathlib.Path(tempfile.mkdtemp(dir="/var/tmp"))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def call(capsys, place):
    def call(check=False, **options):
        arguments = {"path": str(place / "store"), "owner": "nobody", "group": "nogroup", "mode": "0750", **options}
        with patch_module_args({**arguments, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            service_folder.main()
        return json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    return call


def test_do_repeat_change(call, place):
    predicted = call(check=True)
    assert predicted["changed"] and not (place / "store").exists()
    made = call()
    assert (made["changed"], made["differences"], made["diff"]) == (True, predicted["differences"], predicted["diff"])
    assert call()["changed"] is False
    os.chown(place / "store", 0, 0)
    assert call(check=True)["differences"] == ["group", "owner"]
    assert (place / "store").stat().st_uid == 0
    assert call()["differences"] == ["group", "owner"]
    assert (place / "store").owner() == "nobody"


def test_a_link_of_the_services_is_not_followed(call, place):
    call()
    (place / "prize").mkdir(mode=0o700)
    (place / "store" / "models").symlink_to(place / "prize")
    refused = call(path=str(place / "store" / "models"))
    assert refused["failed"] and "root follows no such link" in refused["msg"]
    assert (place / "prize").owner() == "root"


def test_an_account_that_is_not_there_is_predicted_and_refused(call, place):
    assert call(check=True, owner="no-such-account")["changed"] is True
    assert "no account or group no-such-account" in call(owner="no-such-account")["msg"]
    assert not (place / "store").exists()
    assert "cannot be made the folder" in call(mode="rwx")["msg"]
