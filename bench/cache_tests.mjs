// Runs the suite http-tests/cache-tests against a cache: node cache_tests.mjs SUITE BASE SERVER
//
// Prints JSON: for the cache, and for each of those whose results the suite has in its repository,
// how many required and optimal tests passed, of how many, and which did not. The suite sets up its
// SERVER with PUT, which no mirror passes on, so these requests go past the cache.

import fs from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'

const [suite, base, server] = process.argv.slice(2)
const load = name => import(pathToFileURL(path.resolve(suite, name)))
const { runTests, getResults } = await load('test-engine/client/runner.mjs')
const { determineTestResult, resultTypes } = await load('test-engine/lib/results.mjs')
const { default: suites } = await load('tests/index.mjs')

const ask = globalThis.fetch
globalThis.fetch = (url, init) =>
  ask(init?.method === 'PUT' ? url.replace(`${base}/config/`, `${server}/config/`) : url, init)

const tests = suites.flatMap(each => each.tests).filter(each => each.browser_only !== true)
await runTests(suites, false, base)
const all = { ours: getResults() }
const others = path.join(suite, 'results')
if (fs.existsSync(others)) {
  for (const file of fs.readdirSync(others).filter(each => each.endsWith('.json'))) {
    all[file.slice(0, -5)] = JSON.parse(fs.readFileSync(path.join(others, file)))
  }
}

const told = {}
for (const [name, results] of Object.entries(all)) {
  told[name] = {}
  for (const kind of ['required', 'optimal']) {
    const these = tests.filter(each => (each.kind ?? 'required') === kind)
    const failed = these.filter(each =>
      determineTestResult(suites, each.id, results) !== resultTypes.pass)
    told[name][kind] = {
      of: these.length,
      passed: these.length - failed.length,
      failed: failed.map(each => each.id)
    }
  }
}
console.log(JSON.stringify(told))
process.exit()
