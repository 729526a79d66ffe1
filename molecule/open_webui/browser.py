# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open WebUI's page as people see it, in Debian's headless Chromium.

browser.py URL MODEL ROUNDS FOLDER. ADMIN_EMAIL, ADMIN_PASSWORD, USER_EMAIL and USER_PASSWORD name two accounts. Both sign in and
must be offered the declared model and no other; the user holds ROUNDS rounds, reloads the page, finds them all and goes on.
FOLDER gets a screenshot of each step. Exit status 0 only where all of it was seen.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
import time

from playwright.sync_api import expect, sync_playwright

PATIENCE_MS = 600_000  # a loaded machine needs minutes for the first load of the page (seen)


def step(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def sign_in(page, url, who):
    """Sign in as ADMIN or USER, and close what greets a new account."""
    page.goto(url)
    page.locator("input[type=email], input[autocomplete=email]").first.fill(os.environ[f"{who}_EMAIL"])
    page.locator("input[type=password]").first.fill(os.environ[f"{who}_PASSWORD"])
    page.locator("button[type=submit]").first.click()
    page.locator("#chat-input").wait_for()
    greeting = page.get_by_role("button", name="Okay, Let's Go!")
    if greeting.count():
        greeting.first.click()


def models_offered(page):
    """Names in the list of models."""
    page.locator("button[id^=model-selector-]").first.click()
    entries = page.locator("[role=option]")
    entries.first.wait_for()
    found = [" ".join(text.split()) for text in entries.all_inner_texts()]
    page.keyboard.press("Escape")
    return found


def answers(page):
    """What stands under each complete answer: the button that copies it."""
    return page.locator("button.copy-response-button")


def ask(page, number, rounds):
    """Send one question and wait for the whole answer, its thoughts shown as such."""
    before, thoughts = answers(page).count(), page.get_by_text("Thought for")
    earlier = thoughts.count()
    page.locator("#chat-input").click()
    page.keyboard.type(f"Question {number} of {rounds}: what follows from the answer before?")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_count(before + 1, timeout=PATIENCE_MS)
    expect(thoughts).to_have_count(earlier + 1, timeout=PATIENCE_MS)


def main(url, model, rounds, folder):
    rounds, folder = int(rounds), pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or sys.exit("Debian's chromium is not installed: apt-get install chromium.")
    with sync_playwright() as driver:
        # The lab runs as root, where Chromium's own sandbox does not start; the page is the lab's own.
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
        offered = {}
        for who in ("ADMIN", "USER"):
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            page.set_default_timeout(PATIENCE_MS)
            try:
                sign_in(page, url, who)
                offered[who] = models_offered(page)
            finally:
                page.screenshot(path=folder / f"{who.lower()}.png")
            step(f"{who} signed in and is offered {offered[who]}")
            if len(offered[who]) != 1 or model not in offered[who][0]:
                sys.exit(f"{who} is offered {offered[who]}; {model} and nothing else was wanted.")
        try:
            for number in range(1, rounds + 1):
                ask(page, number, rounds)
                step(f"round {number}: a thought and an answer are shown")
            page.screenshot(path=folder / "rounds.png")
            page.reload()
            expect(answers(page)).to_have_count(rounds, timeout=PATIENCE_MS)
            step("reloaded: every round is there")
            ask(page, rounds + 1, rounds)
            step("and one round more")
        finally:
            page.screenshot(path=folder / "after_reload.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:5])
