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
import re
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


def messages(page):
    """What is drawn of the conversation. The page draws only what is near the window, so counting it counts nothing."""
    return page.locator("#messages-container [id^=message-]")


def ask(page, number, rounds):
    """Send one question and wait for the whole answer, its thoughts shown as such."""
    question = f"Question {number} of {rounds}: what follows from the answer before?"
    page.locator("#chat-input").click()
    page.keyboard.type(question)
    page.keyboard.press("Enter")
    expect(messages(page).filter(has_text=question)).to_have_count(1, timeout=PATIENCE_MS)
    answer = messages(page).last
    expect(answer).not_to_contain_text(question, timeout=PATIENCE_MS)
    expect(answer.get_by_text("Thought for")).to_be_visible(timeout=PATIENCE_MS)
    # An answer can be copied once it is whole.
    expect(answer.locator("button.copy-response-button")).to_have_count(1, timeout=PATIENCE_MS)


def rounds_kept(page):
    """{number of a question: whether its answer, with its thoughts, follows it}, read from the conversation's end up to its beginning."""
    box, found = page.locator("#messages-container"), {}
    messages(page).last.wait_for()
    while True:
        texts = messages(page).all_inner_texts()
        for text, after in zip(texts, texts[1:]):
            asked = re.match(r"Question (\d+) of", text)
            if asked:
                found[int(asked[1])] = "Thought for" in after and not after.startswith("Question")
        if box.evaluate("box => box.scrollTop") == 0:
            return found
        box.evaluate("box => { box.scrollTop -= box.clientHeight / 2 }")
        page.wait_for_timeout(500)


def main(url, model, rounds, folder):
    rounds, folder = int(rounds), pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or sys.exit("Debian's chromium is not installed: apt-get install chromium.")
    with sync_playwright() as driver:
        # The lab runs as root, where Chromium's own sandbox does not start; the page is the lab's own.
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
        offered = {}
        for who in ("ADMIN", "USER"):
            # One page at a time: behind another one a page draws no frames, and whoever waits for it to stand still waits for ever.
            for earlier in browser.contexts:
                earlier.close()
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
            deadline, wanted = time.monotonic() + PATIENCE_MS / 1000, dict.fromkeys(range(1, rounds + 1), True)
            while (kept := rounds_kept(page)) != wanted:
                if time.monotonic() > deadline:
                    sys.exit(f"After a reload the conversation is {kept}; {wanted} was wanted.")
            step("reloaded: every round is there")
            ask(page, rounds + 1, rounds)
            step("and one round more")
        finally:
            page.screenshot(path=folder / "after_reload.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:5])
