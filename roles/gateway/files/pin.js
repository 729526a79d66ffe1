// Copyright (c) 2026, gpufleet.llm maintainers
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
//
// Takes the runner's options out of a request's body: finds the bytes of the members that make Ollama load a runner
// anew and cuts out exactly those. Everything else stays as it was sent, byte for byte, because nothing is parsed into
// values and written again (njs would turn 1.0 into 1 and big integers into floats).
// What is not strict JSON (RFC 8259, UTF-8) is refused: the server would read it in a way of its own.
// Written in the JavaScript of njs 0.7.9 (Debian 12): no classes, no for-of, no destructuring.

// Members of `options` that are a runner's identity, and those that other releases have there; members of the body itself: keep_alive
// unloads, shift is a launch argument of the runner. plugins/module_utils/_ollama/runner_options.py has the list; a test compares this copy.
const RUNNER = ['draft_num_predict', 'f16_kv', 'flash_attention', 'flash_attn', 'kv_cache_type', 'logits_all', 'low_vram', 'main_gpu',
    'num_batch', 'num_ctx', 'num_gpu', 'num_gqa', 'num_parallel', 'num_thread', 'numa', 'rope_frequency_base', 'rope_frequency_scale',
    'use_mlock', 'use_mmap', 'vocab_only'];
const TOP = ['keep_alive', 'shift'];

const MAX_DEPTH = 100;

const QUOTE = 34, COMMA = 44, MINUS = 45, COLON = 58, BACKSLASH = 92;
const OPEN_LIST = 91, CLOSE_LIST = 93, OPEN = 123, CLOSE = 125;
const LITERALS = {116: [116, 114, 117, 101], 102: [102, 97, 108, 115, 101], 110: [110, 117, 108, 108]};

function refuse(what, at) {
    throw new Error('The body is not strict JSON: ' + what + ' at byte ' + at + '.');
}

// A name as Go's encoding/json compares it with a field's: without regard to case, where the long s and the Kelvin
// sign count as s and k. So "KEEP_ALIVE" and "options" written with U+017F are what they mean to the server.
function fold(name) {
    return name.toLowerCase().replace(/\u017f/g, 's').replace(/\u212a/g, 'k');
}

// Position of the next `byte` at or after `at` (the body's length if there is none). Remembers, so that all calls
// together read the body once.
function find(body, byte, at) {
    if (body.next[byte] === undefined || body.next[byte] < at) {
        const found = body.bytes.indexOf(byte, at);
        body.next[byte] = found < 0 ? body.length : found;
    }
    return body.next[byte];
}

function blank(bytes, at) {
    let c = bytes[at];
    while (c === 32 || c === 10 || c === 13 || c === 9) {
        at += 1;
        c = bytes[at];
    }
    return at;
}

function digits(bytes, at) {
    const start = at;
    while (bytes[at] >= 48 && bytes[at] <= 57) {
        at += 1;
    }
    if (at === start) {
        refuse('a number lacks a digit', at);
    }
    return at;
}

// End of the number that begins at `at`.
function numberEnd(bytes, at) {
    if (bytes[at] === MINUS) {
        at += 1;
    }
    at = bytes[at] === 48 ? at + 1 : digits(bytes, at);
    if (bytes[at] === 46) {
        at = digits(bytes, at + 1);
    }
    if (bytes[at] === 101 || bytes[at] === 69) {
        at += 1;
        if (bytes[at] === 43 || bytes[at] === MINUS) {
            at += 1;
        }
        at = digits(bytes, at);
    }
    return at;
}

function isHex(c) {
    return (c >= 48 && c <= 57) || (c >= 65 && c <= 70) || (c >= 97 && c <= 102);
}

// Byte behind the closing quote of the string whose opening quote is at `at`.
function stringEnd(body, at) {
    const bytes = body.bytes;
    let from = at + 1;
    for (;;) {
        const quote = find(body, QUOTE, from);
        if (quote >= body.length) {
            refuse('a string does not end', at);
        }
        const escape = find(body, BACKSLASH, from);
        if (escape > quote) {
            if (find(body, 9, at) < quote || find(body, 10, at) < quote || find(body, 13, at) < quote) {
                refuse('a string has a line break or a tab', at);
            }
            return quote + 1;
        }
        const kind = bytes[escape + 1];
        if (kind === 117) {
            if (!(isHex(bytes[escape + 2]) && isHex(bytes[escape + 3]) && isHex(bytes[escape + 4]) && isHex(bytes[escape + 5]))) {
                refuse('an escape is none', escape);
            }
            from = escape + 6;
        } else if (kind === 34 || kind === 92 || kind === 47 || kind === 98 || kind === 102 || kind === 110 || kind === 114 || kind === 116) {
            from = escape + 2;
        } else {
            refuse('an escape is none', escape);
        }
    }
}

// End of the scalar (string, number, literal) that begins at `at`.
function scalarEnd(body, at) {
    const bytes = body.bytes;
    const c = bytes[at];
    if (c === QUOTE) {
        return stringEnd(body, at);
    }
    if (c === MINUS || (c >= 48 && c <= 57)) {
        return numberEnd(bytes, at);
    }
    const word = LITERALS[c];
    if (!word) {
        refuse('a value was wanted', at);
    }
    for (let i = 0; i < word.length; i++) {
        if (bytes[at + i] !== word[i]) {
            refuse('a value was wanted', at);
        }
    }
    return at + word.length;
}

function text(body, start, end) {
    return body.bytes.slice(start, end).toString();
}

function frame(isList, keep) {
    return {isList: isList, keep: keep, members: [], names: {}};
}

// The members of the body's object, and of its `options`, as {name, start, valueStart, end}: bytes from the key's
// opening quote to the value's end. Two members that mean the same name are refused, in both.
function scan(bytes) {
    const body = {bytes: bytes, length: bytes.length, next: {}};
    const stack = [];
    let top = null, at = blank(bytes, 0), root = null, options = null, member = null, end;

    if (bytes[at] !== OPEN) {
        refuse('an object was wanted', at);
    }
    for (;;) {
        // A value begins here.
        const c = bytes[at];
        let closed = false;
        if (c === OPEN || c === OPEN_LIST) {
            if (stack.length === MAX_DEPTH) {
                refuse('more than ' + MAX_DEPTH + ' levels', at);
            }
            const isRoot = top === null;
            const isOptions = stack.length === 1 && member.name === 'options' && c === OPEN;
            top = frame(c === OPEN_LIST, isRoot || isOptions);
            stack.push(top);
            if (isRoot) {
                root = top;
            } else if (isOptions) {
                options = top;
            }
            at = blank(bytes, at + 1);
            if (bytes[at] === (top.isList ? CLOSE_LIST : CLOSE)) {
                closed = true;
            } else if (top.isList) {
                continue;
            }
        } else {
            at = scalarEnd(body, at);
            if (top.keep) {
                top.members[top.members.length - 1].end = at;
            }
            at = blank(bytes, at);
            if (bytes[at] === (top.isList ? CLOSE_LIST : CLOSE)) {
                closed = true;
            } else if (bytes[at] === COMMA) {
                at = blank(bytes, at + 1);
                if (top.isList) {
                    continue;
                }
            } else {
                refuse('a comma or an end was wanted', at);
            }
        }
        // Containers that end here, from the inside out.
        while (closed) {
            at += 1;
            stack.pop();
            if (stack.length === 0) {
                at = blank(bytes, at);
                if (at < body.length) {
                    refuse('something follows the object', at);
                }
                return {root: root.members, options: options && options.members};
            }
            top = stack[stack.length - 1];
            if (top.keep) {
                top.members[top.members.length - 1].end = at;
            }
            at = blank(bytes, at);
            closed = bytes[at] === (top.isList ? CLOSE_LIST : CLOSE);
            if (!closed) {
                if (bytes[at] !== COMMA) {
                    refuse('a comma or an end was wanted', at);
                }
                at = blank(bytes, at + 1);
            }
        }
        if (top.isList) {
            continue;
        }
        // A key, and its colon.
        if (bytes[at] !== QUOTE) {
            refuse('a key was wanted', at);
        }
        end = stringEnd(body, at);
        if (top.keep) {
            member = {name: fold(JSON.parse(text(body, at, end))), start: at, end: 0};
            if (top.names['=' + member.name]) {
                refuse('a key stands there twice', at);
            }
            top.names['=' + member.name] = true;
            top.members.push(member);
        }
        at = blank(bytes, end);
        if (bytes[at] !== COLON) {
            refuse('a colon was wanted', at);
        }
        at = blank(bytes, at + 1);
        if (top.keep) {
            member.valueStart = at;
        }
    }
}

// Ranges [start, end) that take the unwanted members out and leave an object: each goes with the comma behind it, and
// those at the end with the comma before them.
function cuts(members, isUnwanted) {
    const ranges = [];
    let kept = -1;
    members.forEach(function (member, index) {
        if (!isUnwanted(member)) {
            kept = index;
        }
    });
    members.forEach(function (member, index) {
        if (isUnwanted(member) && index < kept) {
            ranges.push([member.start, members[index + 1].start]);
        }
    });
    if (kept < members.length - 1) {
        ranges.push([kept < 0 ? members[0].start : members[kept].end, members[members.length - 1].end]);
    }
    return ranges;
}

function without(bytes, ranges) {
    const parts = [];
    let from = 0;
    ranges.sort(function (a, b) {
        return a[0] - b[0];
    });
    ranges.forEach(function (range) {
        parts.push(bytes.slice(from, range[0]));
        from = range[1];
    });
    parts.push(bytes.slice(from));
    return Buffer.concat(parts);
}

function named(members, name) {
    const found = members.filter(function (member) {
        return member.name === name;
    });
    return found.length ? found[0] : null;
}

function value(bytes, member) {
    return member && JSON.parse(bytes.slice(member.valueStart, member.end).toString());
}

function isScalar(bytes, member) {
    return member && bytes[member.valueStart] !== OPEN && bytes[member.valueStart] !== OPEN_LIST;
}

// What a body asks for: {models, num_ctx, removed, body}. models: the values of `model` and `name` (strings); num_ctx:
// the context asked for, or null; removed: names of the members that were cut out; body: the bytes without them.
// Throws an Error with a sentence for the client where the body is not understood.
function examine(bytes) {
    // Bytes that are no UTF-8, and control characters, which strict JSON has nowhere.
    let decoded;
    try {
        decoded = new TextDecoder('utf-8', {fatal: true, ignoreBOM: true}).decode(bytes);
    } catch (error) {
        throw new Error('The body is not UTF-8.');
    }
    if (/[\x00-\x08\x0b\x0c\x0e-\x1f]/.test(decoded)) {
        throw new Error('The body is not strict JSON: it has control characters.');
    }

    const seen = scan(bytes);
    const models = [];
    ['model', 'name'].forEach(function (name) {
        const member = named(seen.root, name);
        if (member) {
            if (bytes[member.valueStart] !== QUOTE) {
                throw new Error('"' + name + '" is no string.');
            }
            models.push(value(bytes, member));
        }
    });

    const options = named(seen.root, 'options');
    if (options && !seen.options && bytes[options.valueStart] !== 110) {
        throw new Error('"options" is no object.');
    }
    let asked = null;
    const context = named(seen.options || [], 'num_ctx');
    if (context) {
        asked = isScalar(bytes, context) ? value(bytes, context) : NaN;
    }

    const isTop = function (member) {
        return TOP.indexOf(member.name) >= 0;
    };
    const isRunner = function (member) {
        return RUNNER.indexOf(member.name) >= 0;
    };
    const ranges = cuts(seen.root, isTop).concat(cuts(seen.options || [], isRunner));
    const removed = seen.root.filter(isTop).map(function (member) {
        return member.name;
    }).concat((seen.options || []).filter(isRunner).map(function (member) {
        return 'options.' + member.name;
    }));
    return {models: models, num_ctx: asked, removed: removed, body: ranges.length ? without(bytes, ranges) : bytes};
}

export default {examine: examine, fold: fold, RUNNER: RUNNER, TOP: TOP};
