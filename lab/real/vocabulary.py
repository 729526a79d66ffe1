# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Vocabularies: as many tokens and merges as the real one has, of the same mean length, so that a header has its true size."""

from __future__ import annotations


def byte_alphabet():
    """Return the 256 characters that stand for bytes in byte-level BPE, in the order of the published vocabularies.

    Printable bytes stand for themselves and come first: a model of zeros,
    which prefers the lowest token of equals, answers in printable ASCII.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(value) for value in own] + [chr(256 + number) for number in range(256 - len(own))]


def byte_pairs(count, special):
    """Return (tokens, types, merges) of a byte-level BPE with `count` tokens, the special ones last, padded as published files are."""
    alphabet = byte_alphabet()
    letters = "abcdefghijklmnopqrstuvwxyz"
    space = "\u0120"
    plain = count - len(alphabet) - len(special) - min(300, count // 500)
    tokens, merges = list(alphabet), []

    def add(left, right):
        merges.append(f"{left} {right}")
        tokens.append(left + right)

    def room():
        return len(merges) < plain

    pairs = []
    for right in "aeiou" + "".join(sorted(set(letters) - set("aeiou"))):
        for left in letters:
            if len(pairs) < min(len(letters) ** 2, plain // 4):
                add(left, right)
                pairs.append(left + right)
    quads = []
    for left in pairs:
        for right in pairs[:: max(1, len(pairs) // 24)]:
            if len(merges) < plain * 2 // 3:
                add(left, right)
                quads.append(left + right)
    spaced = []
    for quad in quads:
        if room():
            add(space, quad)
            spaced.append(space + quad)
    for right in pairs:
        for left in spaced:
            if not room():
                break
            add(left, right)
    types = [1] * len(tokens) + [3] * len(special)
    tokens += special
    padding = count - len(tokens)
    tokens += [f"[PAD{number}]" for number in range(len(tokens), count)]
    types += [5] * padding
    return tokens, types, merges


def sentence_pieces(count):
    """Return (tokens, types, scores) of a SentencePiece vocabulary as Gemma has it: controls, bytes, words."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{value:02X}>" for value in range(256)] + ["\n", "<start_of_turn>", "<end_of_turn>"]
    types = [3, 3, 3, 2] + [6] * 256 + [1, 3, 3]
    letters = "abcdefghijklmnopqrstuvwxyz"
    number = 0
    while len(tokens) < count:
        word, rest = "", number
        while True:
            word += letters[rest % 26]
            rest //= 26
            if not rest:
                break
        tokens.append(("\u2581" if number % 2 else "") + word + str(number))
        types.append(1)
        number += 1
    return tokens, types, [-float(index) for index in range(len(tokens))]
