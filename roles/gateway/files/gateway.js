// Copyright (c) 2026, gpufleet.llm maintainers
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
//
// What nginx asks for each request: whose token it is, whether it may go on, and with which body.
// Written in the JavaScript of njs 0.7.9 (Debian 12).

import crypto from 'crypto';
import fs from 'fs';
import pin from 'pin.js';
import policy from 'policy.js';

function has(object, key) {
    return Object.prototype.hasOwnProperty.call(object, key);
}

// One sentence in the shape that Ollama's own errors have; OpenAI's clients read it too.
function refuse(r, status, sentence) {
    r.headersOut['Content-Type'] = 'application/json';
    r.return(status, JSON.stringify({error: sentence}) + '\n');
}

// The token that a request carries, '' where it has none: OpenAI's header, or the one of Anthropic's clients.
function given(r) {
    const found = /^Bearer +([^ ]+) *$/i.exec(r.headersIn['Authorization'] || '');
    const value = (found ? found[1] : r.headersIn['X-Api-Key']) || '';
    return value.length > 512 ? '' : value;
}

// Name of the token that a request carries, '' where it has none that is known. Tokens are known by their SHA-256 only.
function token(r) {
    const value = given(r);
    const hash = value && crypto.createHash('sha256').update(value).digest('hex');
    return has(policy.tokens, hash) ? policy.tokens[hash] : '';
}

// What the gateway of another host is handed: the known token in one spelling, and nothing where there is none.
function bearer(r) {
    return r.variables.gateway_token ? 'Bearer ' + given(r) : '';
}

// A model's name as Ollama compares it: without regard to case, `latest` where no tag is given.
function canonical(name) {
    return name.toLowerCase().replace(/:latest$/, '');
}

function mayUse(right, name) {
    const model = canonical(name);
    return has(policy.models, model) && (right.models === null || right.models.indexOf(model) >= 0);
}

function right(r) {
    return policy.rights[r.variables.gateway_token];
}

// Requests with a body: inference, and /api/show.
function infer(r) {
    const mine = right(r);
    if (mine.routes.indexOf(r.variables.gateway_route) < 0) {
        return refuse(r, 403, 'This token may not use ' + r.uri + '.');
    }
    if (r.method !== 'POST') {
        r.headersOut['Allow'] = 'POST';
        return refuse(r, 405, r.uri + ' takes POST only.');
    }
    if (r.headersIn['Content-Encoding'] && r.headersIn['Content-Encoding'].toLowerCase() !== 'identity') {
        return refuse(r, 415, 'The body is compressed; send it as it is.');
    }
    let asked;
    try {
        // As a variable, since nginx.conf looks at it, too: requestBuffer would be one more copy of it.
        asked = pin.examine(r.rawVariables.request_body || Buffer.from(''));
    } catch (error) {
        return refuse(r, 400, error.message);
    }
    if (asked.models.length === 0) {
        return refuse(r, 400, 'The body names no model.');
    }
    for (let i = 0; i < asked.models.length; i++) {
        if (!mayUse(mine, asked.models[i])) {
            return refuse(r, 404, 'This model is not declared here, or not for this token.');
        }
    }
    const model = canonical(asked.models[0]);
    r.variables.gateway_model = model;
    if (mine.pin === 'refuse' && asked.num_ctx !== null) {
        const planned = policy.models[model];
        if (!(typeof asked.num_ctx === 'number' && asked.num_ctx <= planned)) {
            return refuse(r, 400, 'The request asks for another context than the planned ' + planned + ' tokens of ' + model + '. Leave num_ctx out.');
        }
    }
    if (mine.pin === 'off' || asked.removed.length === 0) {
        return r.internalRedirect('@server');
    }
    r.variables.gateway_removed = asked.removed.join(',');
    // Not into an array's join or a Buffer.concat: each would be one more copy of the body.
    const last = policy.parts - 1;
    asked.parts.forEach(function (part, index) {
        if (index < last) {
            r.variables['gateway_body_' + index] = part;
        }
    });
    if (asked.parts.length > last) {
        r.variables['gateway_body_' + last] = Buffer.concat(asked.parts.slice(last));
    }
    r.internalRedirect('@pinned');
}

// GET only, the answer as the server gives it: /api/version, one model of /v1/models/.
function read(r) {
    const mine = right(r);
    if (mine.routes.indexOf(r.variables.gateway_route) < 0) {
        return refuse(r, 403, 'This token may not use ' + r.uri + '.');
    }
    if (r.method !== 'GET' && r.method !== 'HEAD') {
        r.headersOut['Allow'] = 'GET, HEAD';
        return refuse(r, 405, r.uri + ' takes GET only.');
    }
    // nginx passes the path on decoded, so a name with a line's end or a blank would be another request's beginning.
    const one = r.uri.slice('/v1/models/'.length);
    if (r.uri.indexOf('/v1/models/') === 0 && (/[^A-Za-z0-9._:\/-]/.test(one) || !mayUse(mine, one))) {
        return refuse(r, 404, 'This model is not declared here, or not for this token.');
    }
    r.internalRedirect('@bare');
}

// Lists of models, reduced to those that the token may use.
async function list(r) {
    const mine = right(r);
    if (mine.routes.indexOf(r.variables.gateway_route) < 0) {
        return refuse(r, 403, 'This token may not use ' + r.uri + '.');
    }
    if (r.method !== 'GET') {
        r.headersOut['Allow'] = 'GET';
        return refuse(r, 405, r.uri + ' takes GET only.');
    }
    const reply = await r.subrequest('/_gateway/server' + r.uri);
    if (reply.status === 401) {
        return refuse(r, 502, 'A host behind this gateway does not know the token; gateway_tokens has to be the same on all of them.');
    }
    if (reply.status !== 200) {
        return refuse(r, reply.status === 503 ? 503 : 502, 'The server behind the gateway did not answer; try again in a moment.');
    }
    const answer = JSON.parse(reply.responseText);
    const key = r.uri === '/v1/models' ? 'data' : 'models';
    answer[key] = (answer[key] || []).filter(function (model) {
        return mayUse(mine, model.id || model.name);
    });
    r.headersOut['Content-Type'] = 'application/json';
    r.return(200, JSON.stringify(answer) + '\n');
}

function exists(path) {
    try {
        fs.accessSync(path);
        return true;
    } catch (error) {
        return false;
    }
}

// For load balancers: 200 while this host takes requests, 503 and the reason while it does not.
async function healthz(r) {
    if (r.method !== 'GET' && r.method !== 'HEAD') {
        r.headersOut['Allow'] = 'GET, HEAD';
        return refuse(r, 405, r.uri + ' takes GET only.');
    }
    let status = 'ok';
    if (exists(policy.drain)) {
        status = 'drained';
    } else if (exists(policy.fence)) {
        status = 'fenced';
    } else {
        const reply = await r.subrequest('/_gateway/health');
        if (reply.status !== 200) {
            status = 'server does not answer';
        }
    }
    r.headersOut['Content-Type'] = 'application/json';
    r.headersOut['Cache-Control'] = 'no-store';
    r.return(status === 'ok' ? 200 : 503, JSON.stringify({status: status, config: policy.config}) + '\n');
}

export default {token: token, bearer: bearer, infer: infer, read: read, list: list, healthz: healthz};
