// A model of `export_onnx` in the browser: onnxruntime's WebAssembly runs the graph, the modules beside this do the rest.
import {enlarge, squareInput} from './pixels.js'
import {Tokenizer, landmarks, noteAbsent} from './phrases.js'

const here = new URL('.', import.meta.url)

// The bytes of a file; `told` hears how many of them are here
async function fetchBytes(name, told) {
  const answer = await fetch(new URL(name, here))
  if (!answer.ok) throw new Error(`${name} could not be loaded (${answer.status}).`)
  const parts = [], reader = answer.body.getReader()
  for (let part; !(part = await reader.read()).done;) {
    parts.push(part.value)
    told(part.value.length)
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer())
}

export class Segmenter {
  constructor(about) { // what model.json holds
    this.about = about
    this.tokenizer = new Tokenizer(about.tokenizer, about.pad_id, about.unknown_ids, about.max_words)
    this.loading = null
  }

  static async open() { return new Segmenter(await (await fetch(new URL('model.json', here))).json()) }

  // Fetch runtime and model, once; `told(share)` hears from 0 to 1
  load(told = () => {}) {
    return this.loading ??= this.start(told).catch(error => {
      this.loading = null
      throw new Error(`The model could not be loaded (${error.message}): ask again, or reload the page.`)
    })
  }

  async start(told) {
    let loaded = 0
    const count = bytes => told((loaded += bytes)/this.about.bytes)
    const [ort, runtime, graph] = await Promise.all([import('./ort.wasm.bundle.min.mjs'),
      fetchBytes('ort-wasm-simd-threaded.wasm', count), fetchBytes('model.onnx', count)])
    ort.env.wasm.wasmBinary = runtime.buffer
    // more than one thread needs the headers COOP and COEP, which few hosts of static files send
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1
    this.ort = ort
    this.session = await ort.InferenceSession.create(graph, {executionProviders: ['wasm']})
  }

  // The square of a picture (ImageData), which all its phrases share
  square(picture) { return squareInput(picture, this.about) }

  // Raw answer: {scores: n maps (h, w) of log-odds, h, w, queries: n vectors (C), exists: n probabilities that it is there}
  async ask(square, phrase) {
    const {img_size: side, max_words: length} = this.about, {Tensor} = this.ort
    const {ids} = this.tokenizer.encode(phrase)
    const {scores, queries, exists} = await this.session.run({
      image: new Tensor('float32', square, [1, 3, side, side]),
      token_ids: new Tensor('int64', BigInt64Array.from(ids, BigInt), [1, length]),
    })
    const [, n, , h, w] = scores.dims, all = scores.data
    if (![...all, ...exists?.data ?? []].every(Number.isFinite)) throw new Error('The scores of the model are not all finite.')
    const maps = Array.from({length: n}, (_, i) => Float32Array.from({length: h*w}, (_, p) =>
      all[(2*i + 1)*h*w + p] - all[2*i*h*w + p]))
    const size = queries ? queries.dims[2] : 0
    const there = exists && [...exists.data].map(e => 1/(1 + Math.exp(-e)))
    return {scores: maps, h, w, exists: there, queries: Array.from({length: queries ? n : 0}, (_, i) => queries.data.slice(i*size, (i + 1)*size))}
  }

  // Log-odds of every iteration at a size: n arrays (height, width); a mask is where they are positive, and `absent` empty
  async segment(square, phrase, width, height) {
    const {scores, h, w, queries, exists} = await this.ask(square, phrase)
    for (const landmark of exists ? landmarks(phrase, this.about.landmark_after) : []) {
      const {exists: found} = await this.ask(square, landmark)
      exists.forEach((probability, i) => { exists[i] = Math.min(probability, found.at(-1)) })
    }
    const absent = scores.map((_, i) => exists ? noteAbsent(exists[i], this.about.threshold) : '')
    return {scores: scores.map(map => enlarge(map, h, w, height, width)), queries, absent}
  }
}
