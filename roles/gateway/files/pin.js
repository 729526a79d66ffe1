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
const MAX_MEMBERS = 500;    // of the body and of `options` together
const MAX_NUMBER = 100;     // characters of a number
const MAX_NAME = 256;       // bytes of a model's name and of a kept key

// What looking at one body may cost. njs interprets, so each byte that a loop of ours steps over has a price; what indexOf skips
// has none. A step is about 50 ns: a value or key 2 us, an escape 0.2 us, a blank 0.1 us (bench/gateway_bodies.py).
const WORK = 250000;
const VALUE = 40, ESCAPE = 4, BLANK = 2;

const QUOTE = 34, COMMA = 44, MINUS = 45, COLON = 58, BACKSLASH = 92;
const OPEN_LIST = 91, CLOSE_LIST = 93, OPEN = 123, CLOSE = 125;
const LITERALS = {116: [116, 114, 117, 101], 102: [102, 97, 108, 115, 101], 110: [110, 117, 108, 108]};

function refuse(what, at) {
    throw new Error('The body is not strict JSON: ' + what + ' at byte ' + at + '.');
}

function spend(body, steps) {
    body.left -= steps;
    if (body.left < 0) {
        throw new Error('The body has more values, escapes and blanks than the gateway looks at.');
    }
}

// A name as Go's encoding/json compares it with a field's: without regard to case, where the long s and the Kelvin
// sign count as s and k. So "KEEP_ALIVE" and "options" written with U+017F are what they mean to the server.
function fold(name) {
    return name.toLowerCase().replace(/\u017f/g, 's').replace(/\u212a/g, 'k');
}

function blank(body, at) {
    const bytes = body.bytes, start = at, last = at + body.left;
    let c = bytes[at];
    while ((c === 32 || c === 10 || c === 13 || c === 9) && at <= last) {
        at += 1;
        c = bytes[at];
    }
    if (at > start) {
        spend(body, BLANK * (at - start));
    }
    return at;
}

function digits(bytes, at) {
    const start = at;
    while (bytes[at] >= 48 && bytes[at] <= 57 && at - start <= MAX_NUMBER) {
        at += 1;
    }
    if (at === start) {
        refuse('a number lacks a digit', at);
    }
    return at;
}

// End of the number that begins at `at`.
function numberEnd(body, at) {
    const bytes = body.bytes, start = at;
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
    if (at - start > MAX_NUMBER) {
        refuse('a number has more than ' + MAX_NUMBER + ' characters', start);
    }
    spend(body, at - start);
    return at;
}

// Byte behind the closing quote of the string whose opening quote is at `at`. Remembers the next quote and the next backslash, so that all
// strings together are read twice. What stands in a string (escapes, control characters) is looked at by nginx.conf, natively.
function stringEnd(body, at) {
    const bytes = body.bytes, length = body.length;
    let from = at + 1, quote = body.quote, escape = body.escape, left = body.left;
    for (;;) {
        if (quote < from) {
            quote = bytes.indexOf(QUOTE, from);
            quote = quote < 0 ? length : quote;
        }
        if (escape < from) {
            escape = bytes.indexOf(BACKSLASH, from);
            escape = escape < 0 ? length : escape;
        }
        if (escape > quote || quote === length || left < 0) {
            break;
        }
        left -= ESCAPE;
        from = escape + 2;
    }
    body.quote = quote;
    body.escape = escape;
    spend(body, body.left - left);
    if (quote === length) {
        refuse('a string does not end', at);
    }
    return quote + 1;
}

function literalEnd(bytes, at) {
    const word = LITERALS[bytes[at]];
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

// The text of the string at [start, end). Where its bytes are not UTF-8 the server would read another one.
function text(bytes, start, end) {
    let decoded;
    try {
        decoded = new TextDecoder('utf-8', {fatal: true, ignoreBOM: true}).decode(bytes.slice(start, end));
    } catch (error) {
        refuse('a name is not UTF-8', start);
    }
    return JSON.parse(decoded);
}

// The member whose key is at [at, end), of a list of members that are kept; two that mean the same name are refused.
function addMember(body, kept, at, end) {
    if (end - at > MAX_NAME) {
        refuse('a key has more than ' + MAX_NAME + ' bytes', at);
    }
    const member = {name: fold(text(body.bytes, at, end)), start: at, valueStart: 0, end: 0};
    if (kept.names['=' + member.name]) {
        refuse('a key stands there twice', at);
    }
    body.members += 1;
    if (body.members > MAX_MEMBERS) {
        throw new Error('The body has more than ' + MAX_MEMBERS + ' members.');
    }
    kept.names['=' + member.name] = true;
    kept.members.push(member);
    return member;
}

// The members of the body's object, and of its `options`, as {name, start, valueStart, end}: bytes from the key's
// opening quote to the value's end. Two members that mean the same name are refused, in both.
function scan(bytes) {
    const body = {bytes: bytes, length: bytes.length, quote: -1, escape: -1, left: WORK, members: 0};
    const root = {members: [], names: {}};
    const open = [];        // of each container that is open: whether it is a list
    let options = null, inOptions = false, kept = null, isList = false, member = null;
    let at = blank(body, 0);

    if (bytes[at] !== OPEN) {
        refuse('an object was wanted', at);
    }
    for (;;) {
        // A value begins here.
        const c = bytes[at];
        let ends = false;
        spend(body, VALUE);
        if (c === OPEN || c === OPEN_LIST) {
            if (open.length === MAX_DEPTH) {
                refuse('more than ' + MAX_DEPTH + ' levels', at);
            }
            isList = c === OPEN_LIST;
            open.push(isList);
            inOptions = inOptions || (open.length === 2 && !isList && member.name === 'options');
            options = options || (inOptions ? {members: [], names: {}} : null);
            kept = open.length === 1 ? root : open.length === 2 && inOptions ? options : null;
            at = blank(body, at + 1);
            ends = bytes[at] === (isList ? CLOSE_LIST : CLOSE);
            if (!ends && isList) {
                continue;
            }
        } else {
            if (c === QUOTE) {
                at = stringEnd(body, at);
            } else if (c === MINUS || (c >= 48 && c <= 57)) {
                at = numberEnd(body, at);
            } else {
                at = literalEnd(bytes, at);
            }
            ends = null;
        }
        // Behind a value: the containers that end here, from the inside out, then a comma.
        while (ends !== false) {
            if (ends) {
                at += 1;
                open.pop();
                if (open.length === 0) {
                    at = blank(body, at);
                    if (at < body.length) {
                        refuse('something follows the object', at);
                    }
                    return {root: root.members, options: options && options.members};
                }
                isList = open[open.length - 1];
                inOptions = inOptions && open.length > 1;
                kept = open.length === 1 ? root : open.length === 2 && inOptions ? options : null;
            }
            if (kept) {
                kept.members[kept.members.length - 1].end = at;
            }
            at = blank(body, at);
            ends = bytes[at] === (isList ? CLOSE_LIST : CLOSE);
            if (!ends) {
                if (bytes[at] !== COMMA) {
                    refuse('a comma or an end was wanted', at);
                }
                at = blank(body, at + 1);
            }
        }
        if (isList) {
            continue;
        }
        // A key, and its colon.
        if (bytes[at] !== QUOTE) {
            refuse('a key was wanted', at);
        }
        spend(body, VALUE);
        const end = stringEnd(body, at);
        if (kept) {
            member = addMember(body, kept, at, end);
        }
        at = blank(body, end);
        if (bytes[at] !== COLON) {
            refuse('a colon was wanted', at);
        }
        at = blank(body, at + 1);
        if (kept) {
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

// What is left of the bytes when the ranges, as [[start, end), ...] in order, are taken out: views, no copies.
function without(bytes, ranges) {
    const parts = [];
    let from = 0;
    ranges.forEach(function (range) {
        parts.push(bytes.slice(from, range[0]));
        from = range[1];
    });
    parts.push(bytes.slice(from));
    return parts;
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

// What a body asks for: {models, num_ctx, removed, ranges}. models: the values of `model` and `name` (strings); num_ctx:
// the context asked for, or null; removed: names of the members that are cut out; parts: the bytes without them.
// Throws an Error with a sentence for the client where the body is not understood.
function examine(bytes) {
    const seen = scan(bytes);
    const models = [];
    ['model', 'name'].forEach(function (name) {
        const member = named(seen.root, name);
        if (member) {
            if (bytes[member.valueStart] !== QUOTE) {
                throw new Error('"' + name + '" is no string.');
            }
            models.push(member.end - member.valueStart > MAX_NAME ? '' : text(bytes, member.valueStart, member.end));
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
    ranges.sort(function (a, b) {
        return a[0] - b[0];
    });
    const removed = seen.root.filter(isTop).map(function (member) {
        return member.name;
    }).concat((seen.options || []).filter(isRunner).map(function (member) {
        return 'options.' + member.name;
    }));
    return {models: models, num_ctx: asked, removed: removed, parts: without(bytes, ranges)};
}

export default {examine: examine, fold: fold, RUNNER: RUNNER, TOP: TOP};
