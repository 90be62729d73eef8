// SPDX-License-Identifier: Apache-2.0
// An HTTP server with everything of Node at work: timers, the thread pool, a worker thread, a child process, streams.
'use strict';
const http = require('http');
const crypto = require('crypto');
const zlib = require('zlib');
const fs = require('fs');
const { Worker } = require('worker_threads');
const { spawn } = require('child_process');

const port = Number(process.argv[2]);
const table = new Map();
for (let i = 0; i < 100000; i++) table.set(`key ${i}`, { number: i, text: `content ${i}` });
const state = { ticks: 0, hashes: 0, files: 0, answers: 0, echoes: 0, trouble: null };
const fail = (what) => { state.trouble = state.trouble || String(what); };

setInterval(() => { state.ticks++; }, 5);

const expected = crypto.pbkdf2Sync('password', 'salt', 2000, 32, 'sha256').toString('hex');
(function hash() {
  crypto.pbkdf2('password', 'salt', 2000, 32, 'sha256', (error, key) => {
    if (error || key.toString('hex') !== expected) fail(`pbkdf2: ${error}`);
    state.hashes++;
    setTimeout(hash, 1);
  });
})();

(function read() {
  fs.readFile(__filename, (error, data) => {
    if (error || data.length === 0) fail(`readFile: ${error}`);
    state.files++;
    setTimeout(read, 2);
  });
})();

const worker = new Worker(`
  const { parentPort } = require('worker_threads');
  const shared = new Float64Array(100000).map((_, i) => Math.sqrt(i));
  parentPort.on('message', (n) => parentPort.postMessage([n, shared.reduce((a, b) => a + b, 0)]));
`, { eval: true });
let sum = null;
worker.on('message', ([n, result]) => {
  if (sum === null) {
    sum = result;
    startChild();
  }
  if (n !== state.answers || result !== sum) fail(`worker: ${n} ${result}`);
  state.answers++;
  setTimeout(() => worker.postMessage(state.answers), 2);
});
worker.on('error', fail);
worker.postMessage(0);

// Only now: while a worker starts, V8 has /proc/self/maps open, and a child that is spawned then inherits it.
let child = null;
function startChild() {
  child = spawn('/bin/cat', [], { stdio: ['pipe', 'pipe', 'inherit'] });
  let echo = '';
  child.stdout.on('data', (data) => {
    echo += data;
    if (!echo.endsWith('\n')) return;
    if (echo !== `echo ${state.echoes}\n`) fail(`cat: ${echo}`);
    echo = '';
    state.echoes++;
    setTimeout(() => child.stdin.write(`echo ${state.echoes}\n`), 2);
  });
  child.on('exit', (code, signal) => fail(`cat ended: ${code} ${signal}`));
  child.stdin.write('echo 0\n');
}

const server = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://localhost');
  if (url.pathname === '/state') return response.end(JSON.stringify(state));
  if (url.pathname === '/zip') return response.end(zlib.gzipSync(Buffer.alloc(100000, 'x')));
  if (url.pathname === '/check') {
    for (let i = 0; i < 100000; i++) {
      const entry = table.get(`key ${i}`);
      if (!entry || entry.number !== i || entry.text !== `content ${i}`) return response.end(`table changed at ${i}`);
    }
    return response.end('good');
  }
  response.statusCode = 404;
  return response.end();
});
server.listen(port, '127.0.0.1', () => console.log('ready'));

process.on('SIGTERM', () => {
  child.removeAllListeners('exit');
  child.stdin.end();
  child.on('exit', () => process.exit(state.trouble ? 1 : 0));
});
