# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Laid into the environment of the new version, and imported as it starts: what its migration may do to the data, on purpose.

SABOTAGE beside this file says how: half (a table gone, then the end), loss (chats gone, all else well), hang (half of it, then no end).
"""

import os
import sqlite3
import sys
import time

if sys.argv[0].endswith("/open-webui") and "serve" in sys.argv:
    with open(os.path.join(os.path.dirname(__file__), "SABOTAGE"), encoding="utf-8") as handle:
        how = handle.read().strip()
    database = sqlite3.connect(os.path.join(os.environ["DATA_DIR"], "webui.db"))
    database.execute("DELETE FROM chat")
    if how != "loss":
        database.execute('DROP TABLE "function"')
        database.execute("UPDATE alembic_version SET version_num = 'of-no-release'")
    database.commit()
    database.close()
    if how == "half":
        sys.exit("sabotage: the migration failed half way")
    while how == "hang":
        time.sleep(60)
