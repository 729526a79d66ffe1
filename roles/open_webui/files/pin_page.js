// Copyright (c) 2026, gpufleet.llm maintainers
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
//
// What stands between Open WebUI and Ollama: each request with a body goes on without the runner's options, as pin.js cuts them out.
// Written in the JavaScript of njs 0.7.9 (Debian 12).

import pin from 'pin.js';
import policy from 'pin_policy.js';

function refuse(r, status, sentence) {
    r.headersOut['Content-Type'] = 'application/json';
    r.return(status, JSON.stringify({error: sentence}) + '\n');
}

// A model's name as Ollama compares it: without regard to case, `latest` where no tag is given.
function canonical(name) {
    return name.toLowerCase().replace(/:latest$/, '');
}

function ask(r) {
    if (r.method !== 'POST') {
        r.headersOut['Allow'] = 'POST';
        return refuse(r, 405, 'This takes POST only.');
    }
    if (r.headersIn['Content-Encoding'] && r.headersIn['Content-Encoding'].toLowerCase() !== 'identity') {
        return refuse(r, 415, 'The body is compressed; send it as it is.');
    }
    let asked;
    try {
        asked = pin.examine(r.rawVariables.request_body || Buffer.from(''));
    } catch (error) {
        return refuse(r, 400, error.message);
    }
    if (asked.models.length === 0) {
        return refuse(r, 400, 'The body names no model.');
    }
    for (let i = 0; i < asked.models.length; i++) {
        if (policy.models !== null && policy.models.indexOf(canonical(asked.models[i])) < 0) {
            return refuse(r, 404, 'This model is not declared here.');
        }
    }
    r.variables.pin_removed = asked.removed.join(',');
    r.variables.pin_body = asked.parts.length === 1 ? asked.parts[0] : Buffer.concat(asked.parts);
    r.internalRedirect('@pinned');
}

export default {ask: ask};
