// Run a GGUF file in llama.cpp: node llama_cpp.mjs INDEX_OF_NODE_LLAMA_CPP REQUEST.json RESULT.json
//
// REQUEST  {model, prompts: [{text, prompt: [ids], reply: [ids]}, ...]}
// RESULT   {version, turns: [{ids: [ids of text], greedy: [ids], logits: base64 of float32}, ...]}
//
// `ids` are those of llama.cpp for the text, in which control tokens are recognized. `greedy` are its own most probable tokens after
// the prompt, one after the other. `logits` (T, V) are those along the given reply.

import fs from "node:fs";
import {pathToFileURL} from "node:url";

const [index, requestFile, resultFile] = process.argv.slice(2);
const {getLlama, getModuleVersion} = await import(pathToFileURL(index));
const request = JSON.parse(fs.readFileSync(requestFile, "utf8"));
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: "error", maxThreads: request.threads});
const model = await llama.loadModel({modelPath: request.model});
const size = Math.max(...request.prompts.map(({prompt, reply}) => prompt.length + reply.length + 8));
const context = await model.createContext({contextSize: Math.min(size, request.context), threads: request.threads});
const sequence = context.getSequence();

async function greedyTokens(prompt, count, stops) {
    const tokens = [];
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        tokens.push(token);
        if (tokens.length >= count || stops.has(token))
            break;
    }
    return tokens;
}

async function logitsAlong(prompt, reply) {
    const input = [...prompt, ...reply.slice(0, -1)].map((token, at) => (
        at >= prompt.length - 1 ? [token, {generateNext: {logits: true}}] : token
    ));
    const rows = [];
    for (const output of await sequence.controlledEvaluate(input)) {
        if (output === undefined)
            continue;
        const row = new Float32Array(request.vocabulary);
        for (const [token, logit] of output.next.logits)
            row[token] = logit;
        rows.push(row);
    }
    return Buffer.concat(rows.map((row) => Buffer.from(row.buffer)));
}

const turns = [];
for (const {text, prompt, reply} of request.prompts) {
    await sequence.clearHistory();
    const greedy = await greedyTokens(prompt, reply.length, new Set(request.stops));
    await sequence.clearHistory();
    const logits = await logitsAlong(prompt, reply);
    turns.push({ids: model.tokenize(text, true), greedy, logits: logits.toString("base64")});
}
fs.writeFileSync(resultFile, JSON.stringify({version: await getModuleVersion(), turns}));
process.exit(0);
