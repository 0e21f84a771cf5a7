// The page: what a visitor chooses and types becomes a picture and a phrase, the answer becomes four figures.
import {flatten, readPicture} from './pixels.js'
import {drawScene} from './scenes.js'
import {Segmenter} from './segmenter.js'

const $ = id => document.getElementById(id)
const SHOWN = 384, WHITE = [255, 255, 255], ORANGE = [255, 127, 14], PURPLE = [94, 60, 153], GREY = [128, 128, 128]

const read = fetch('scenes.json').then(answer => answer.json())
const [segmenter, world] = await Promise.all([Segmenter.open(), read]).catch(error => {
  alert(`The page could not start (${error.message}): reload it.`)
  throw error
})
const state = {picture: null, square: null, phrases: [], place: null, answer: null, asked: '', timer: null}

// ---- what a visitor is told

function alert(text = '') {
  $('alert').textContent = text
  $('alert').hidden = !text
}

// A handler whose errors are one line on the page
const guarded = handler => async event => {
  alert()
  try { await handler(event) }
  catch (error) { alert(String(error.message || error).replace(/\s+/g, ' ').slice(0, 300)) }
}

// Words as they are typed, the unknown ones marked; the last may be the beginning of a known one
function echo() {
  const phrase = $('phrase').value.slice(0, 500), pieces = segmenter.tokenizer.marked(phrase), last = pieces.at(-1)
  if (last && !/\s$/.test(phrase) && segmenter.tokenizer.known.some(word => word.startsWith(last.text.toLowerCase()))) last.known = true
  $('echo').replaceChildren(...pieces.flatMap(({text, known}) => {
    const part = document.createElement(known ? 'span' : 'mark')
    part.textContent = text
    return [part, ' ']
  }))
  const unknown = pieces.filter(({known}) => !known).map(({text}) => text)
  if (unknown.length) $('echo').append(`– unknown: ${unknown.join(', ')}`)
  else $('echo').textContent = ''
}

function chips(place, words, chosen) {
  place.replaceChildren(...words.map(word => {
    const chip = Object.assign(document.createElement('button'), {type: 'button', textContent: word})
    chip.addEventListener('click', () => chosen(word))
    return chip
  }))
}

// ---- pictures to choose from

// What is kept of a picture: the square for the model, and no more pixels than are shown
function prepared(picture) {
  const scale = Math.min(1, 640/Math.max(picture.width, picture.height))
  const size = [picture.width, picture.height].map(side => Math.max(1, Math.round(side*scale)))
  return {square: segmenter.square(picture), picture: scale === 1 ? picture : flatten(canvasOf(picture), ...size)}
}

let turn = 0 // of choosing: what arrives after a later choice is not shown

// Take a picture; `place` is what an address says of it
function take({square, picture}, phrases, place) {
  stop()
  if (state.phrases.includes($('phrase').value)) $('phrase').value = phrases[0] ?? '' // nobody typed it
  Object.assign(state, {square, picture, phrases, place, answer: null, asked: ''})
  address()
  chips($('examples'), phrases, phrase => { $('phrase').value = phrase; ask() })
  echo()
  draw()
}

function canvasOf(pixels) {
  const canvas = new OffscreenCanvas(pixels.width, pixels.height)
  canvas.getContext('2d').putImageData(pixels, 0, 0)
  return canvas
}

function offer(name, shown, picked, checked = false) {
  const label = document.createElement('label'), radio = document.createElement('input')
  Object.assign(radio, {type: 'radio', name: 'scene', checked})
  radio.setAttribute('aria-label', name)
  radio.addEventListener('change', guarded(picked))
  label.append(radio, shown)
  $('scenes').append(label)
  return radio
}

async function takeScene(i) {
  const {file, phrases} = world.scenes[i], mine = ++turn
  const bitmap = await createImageBitmap(await (await fetch(file)).blob(), {colorSpaceConversion: 'none'})
  if (mine === turn) take(prepared(flatten(bitmap)), phrases, {scene: i + 1})
}

function thumbnail(picture) {
  const shown = document.createElement('canvas')
  Object.assign(shown, {width: 96, height: 96})
  shown.getContext('2d').drawImage(canvasOf(picture), 0, 0, 96, 96)
  return shown
}

const drawn = new Map() // seed -> its radio

function addScene(seed) {
  if (drawn.has(seed)) return drawn.get(seed).click()
  const {picture, phrases, look} = drawScene(world, seed), kept = prepared(picture)
  const chosen = () => { turn++; take(kept, phrases, {seed}) }
  drawn.set(seed, offer(`New scene: ${look}`, thumbnail(picture), chosen, true))
  chosen()
}

async function addFile(file) {
  const mine = ++turn, kept = prepared(await readPicture(file)), chosen = () => { turn++; take(kept, [], {}) }
  offer(`Picture ${file.name}`, thumbnail(kept.picture), chosen, mine === turn)
  if (mine === turn) chosen()
}

// ---- asking

const ask = guarded(async () => {
  const phrase = $('phrase').value.trim(), fault = segmenter.tokenizer.fault(phrase)
  if (fault) throw new Error(fault)
  stop()
  if (!state.picture) throw new Error('Choose a picture first.')
  if (!segmenter.session) {
    $('told').textContent = `Loading the model, ${(segmenter.about.bytes/1e6).toFixed(0)} MB, once`
    $('loading').hidden = false
    try { await segmenter.load(share => { $('bar').value = share }) }
    finally { $('loading').hidden = true }
  }
  const {square, picture} = state, begun = performance.now() // of the picture that is chosen now
  const answer = await segmenter.segment(square, phrase, picture.width, picture.height)
  if (state.picture !== picture) return // another was chosen meanwhile
  const took = performance.now() - begun, n = answer.scores.length
  Object.assign(state, {answer, asked: phrase, took})
  Object.assign($('iteration'), {max: n, value: n})
  address()
  draw()
})

// The page's address says picture, phrase and iteration, so that it can be shared; a picture of one's own stays here
function address() {
  if (!Object.keys(state.place).length) return history.replaceState(null, '', location.pathname)
  const question = state.answer ? {phrase: state.asked, iteration: $('iteration').value} : {}
  history.replaceState(null, '', `#${new URLSearchParams({...state.place, ...question})}`)
}

async function visit() {
  const given = new URLSearchParams(location.hash.slice(1)), number = name => Math.trunc(Number(given.get(name)))
  if (given.has('seed') && number('seed') >= 0) addScene(number('seed'))
  else {
    const i = Math.min(Math.max(number('scene') || 1, 1), world.scenes.length) - 1
    document.querySelectorAll('#scenes input')[i].checked = true
    await takeScene(i)
  }
  $('phrase').value = given.get('phrase')?.slice(0, 500) ?? state.phrases[0]
  echo()
  if (!given.has('phrase')) return
  await ask()
  const at = number('iteration')
  if (state.answer && at >= 1 && at <= state.answer.scores.length) {
    $('iteration').value = at
    draw()
    address()
  }
}

// ---- drawing

// A canvas of the picture's proportions, each pixel given by `colour(index of the picture's pixel, x, y)`
function fill(canvas, colour) {
  const {width, height} = state.picture, times = Math.ceil(SHOWN/Math.max(width, height))
  Object.assign(canvas, {width: width*times, height: height*times})
  canvas.style.imageRendering = times > 1 ? 'pixelated' : 'auto'
  const context = canvas.getContext('2d'), shown = context.createImageData(canvas.width, canvas.height)
  for (let y = 0, at = 0; y < canvas.height; y++) for (let x = 0; x < canvas.width; x++, at += 4) {
    const [r, g, b] = colour(Math.floor(y/times)*width + Math.floor(x/times), x, y, times)
    shown.data[at] = r, shown.data[at + 1] = g, shown.data[at + 2] = b, shown.data[at + 3] = 255
  }
  context.putImageData(shown, 0, 0)
}

const mix = ([r, g, b], [R, G, B], share) => [(1 - share)*r + share*R, (1 - share)*g + share*G, (1 - share)*b + share*B]
const tone = p => p < .5 ? mix(PURPLE, WHITE, 2*p) : mix(WHITE, ORANGE, 2*p - 1) // as in the notebooks
const probability = score => 1/(1 + Math.exp(-score))

function draw() {
  const {picture, answer} = state, {data, width, height} = picture, at = $('iteration').value - 1
  const pixel = i => [data[4*i], data[4*i + 1], data[4*i + 2]]
  for (const part of [$('steps'), ...document.querySelectorAll('.answered')]) part.hidden = !answer
  if (!answer) {
    $('status').textContent = ''
    $('mask').setAttribute('aria-label', 'The picture, without an answer')
    return fill($('mask'), pixel)
  }
  const scores = answer.scores[at], is = maskAt(at), was = maskAt(Math.max(at - 1, 0))
  const grey = i => Array(3).fill((data[4*i] + data[4*i + 1] + data[4*i + 2])/3)
  const inside = (x, y, times) => { // of the enlarged picture; outside it, as its nearest pixel
    const clamp = (v, n) => Math.min(Math.max(Math.floor(v/times), 0), n - 1)
    return is(clamp(y, height)*width + clamp(x, width))
  }
  const line = Math.max(1, Math.round(SHOWN/150)), steps = [-line, 0, line]
  const around = steps.flatMap(dx => steps.map(dy => [dx, dy]))
  fill($('mask'), (i, x, y, times) => {
    const here = is(i)
    if (around.some(([dx, dy]) => inside(x + dx, y + dy, times) !== here)) return here ? WHITE : [0, 0, 0]
    return here ? mix(pixel(i), ORANGE, .6) : pixel(i)
  })
  fill($('change'), i => {
    const [now, then] = [is(i), was(i)]
    return now && then ? GREY : now ? ORANGE : then ? PURPLE : mix(grey(i), WHITE, .8)
  })
  fill($('score'), i => mix(grey(i), tone(probability(scores[i])), .6))
  drawPath(at)
  say(at, scores, is, was)
}

// Whether a pixel is in the mask of an iteration; none is where the model says that nothing is there
function maskAt(at) {
  const scores = state.answer.scores[at]
  return !scores || state.answer.absent[at] ? () => false : i => scores[i] > 0
}

function say(at, scores, is, was) {
  let found = 0, gained = 0, lost = 0, x = 0, y = 0, top = -Infinity
  scores.forEach((score, i) => {
    const now = is(i), then = was(i)
    top = Math.max(top, score)
    if (now) found++, x += i % state.picture.width, y += Math.floor(i/state.picture.width)
    gained += now && !then
    lost += then && !now
  })
  const third = (v, n, names) => names[Math.min(2, Math.floor(3*v/(found*n)))]
  const where = found ? `, ${third(y, state.picture.height, ['top', 'middle', 'bottom'])} ${third(x, state.picture.width, ['left', 'centre', 'right'])}` : ''
  const absent = state.answer.absent[at], text = absent || (found ? `${found} of ${scores.length} pixels${where}` : 'nothing found')
  const unknown = segmenter.tokenizer.marked(state.asked).filter(({known}) => !known).map(({text}) => text)
  $('number').textContent = `${at + 1} of ${state.answer.scores.length}`
  $('iteration').setAttribute('aria-valuetext', `iteration ${at + 1}: ${text}`)
  $('status').textContent = `“${state.asked}”, iteration ${at + 1}: ${text}; `
    + (absent ? '' : `probability up to ${probability(top).toFixed(2)}; `)
    + (unknown.length ? `without the unknown ${unknown.join(', ')}; ` : '') + `answered in ${Math.round(state.took)} ms.`
  $('mask').setAttribute('aria-label', `The picture with the mask of iteration ${at + 1}: ${text}`)
  $('change').setAttribute('aria-label', at ? `Since the iteration before: ${gained} pixels gained, ${lost} lost` : 'The first iteration, which gains and loses nothing')
  $('score').setAttribute('aria-label', `Probability of each pixel to be the object, up to ${probability(top).toFixed(2)}`)
}

// The queries in the plane that keeps most of the queries of all scenes
function drawPath(at) {
  const {plane} = segmenter.about, {queries} = state.answer
  $('way').hidden = !plane || !queries.length
  if ($('way').hidden) return
  const flat = query => plane.axes.map(axis => axis.reduce((sum, v, i) => sum + v*query[i], 0))
  const way = queries.map(flat), all = [...plane.dots.flatMap(dot => [dot.first, dot.last]), ...way]
  const low = [0, 1].map(k => Math.min(...all.map(p => p[k]))), high = [0, 1].map(k => Math.max(...all.map(p => p[k])))
  const span = Math.max(high[0] - low[0], high[1] - low[1]) || 1
  const spot = p => p.map((v, k) => [8 + 84*(v - (low[k] + high[k])/2 + span/2)/span, 92 - 84*(v - (low[k] + high[k])/2 + span/2)/span][k])
  const make = (kind, given, text) => {
    const part = document.createElementNS('http://www.w3.org/2000/svg', kind)
    for (const [name, value] of Object.entries(given)) part.setAttribute(name, value)
    if (text) part.textContent = text
    return part
  }
  const points = way.map(spot)
  $('path').replaceChildren(
    ...plane.dots.flatMap(({first, last, colour}) => [[first, {fill: 'none', stroke: 'currentColor', 'stroke-width': .3}],
      [last, {fill: colour, 'fill-opacity': .6}]].map(([at, look]) => {
      const [cx, cy] = spot(at)
      return make('circle', {cx, cy, r: 1.3, ...look})
    })),
    make('polyline', {points: points.map(p => p.join()).join(' '), fill: 'none', stroke: 'currentColor', 'stroke-width': .8}),
    ...points.flatMap(([cx, cy], i) => [make('circle', {cx, cy, r: i === at ? 3 : 1.8, fill: 'currentColor'}),
      make('text', {x: cx + 4, y: cy + 2, 'font-size': 6, fill: 'currentColor', 'font-weight': i === at ? 700 : 400}, String(i + 1))]))
  const moved = queries.slice(1).map((q, i) => Math.hypot(...q.map((v, k) => v - queries[i][k])).toFixed(1))
  $('path').setAttribute('aria-label', `The query moves by ${moved.join(', then ')} from iteration to iteration`)
}

// ---- playing

function stop() {
  clearInterval(state.timer)
  state.timer = null
  $('play').textContent = 'Play'
}

function play() {
  if (state.timer) return stop()
  const slider = $('iteration'), step = () => {
    slider.value = slider.value === slider.max ? 1 : Number(slider.value) + 1
    draw()
  }
  $('play').textContent = 'Pause'
  state.timer = setInterval(step, 900)
  step()
}

// ---- the page begins

const known = segmenter.tokenizer.known
$('count').textContent = known.length
$('words').hidden = known.length > 200
if (known.length <= 200) chips($('known'), known, word => {
  $('phrase').value = `${$('phrase').value.trimEnd()} ${word}`.trimStart()
  echo()
  $('phrase').focus()
})
$('scale').style.background = `linear-gradient(to right, ${[PURPLE, WHITE, ORANGE].map(colour => `rgb(${colour})`)})`
world.scenes.forEach(({file, look}, i) => offer(`Scene ${i + 1}: ${look}`, Object.assign(new Image(), {src: file, alt: ''}), () => takeScene(i)))
$('form').addEventListener('submit', event => { event.preventDefault(); ask() })
$('phrase').addEventListener('input', echo)
$('draw').addEventListener('click', guarded(() => addScene(Math.floor(Math.random()*2**32))))
async function addFiles(files) { // each for itself: the first fault is told, the rest is taken
  const faults = []
  for (const file of files) await addFile(file).catch(error => faults.push(error))
  if (faults.length) throw faults[0]
}
$('file').addEventListener('change', guarded(async ({target}) => {
  const files = [...target.files]
  target.value = '' // so that the same file can be chosen again
  await addFiles(files)
}))
$('iteration').addEventListener('input', () => { stop(); draw(); address() })
$('play').addEventListener('click', play)
$('share').addEventListener('click', guarded(async () => {
  if (!Object.keys(state.place).length) throw new Error('A picture of your own stays in your browser: no link can hold it.')
  address()
  if (!navigator.clipboard) throw new Error(`This browser copies nothing from here: take ${location.href}`)
  await navigator.clipboard.writeText(location.href)
  $('share').textContent = 'Copied'
  setTimeout(() => { $('share').textContent = 'Copy a link' }, 1500)
}))
const over = event => {
  if (!event.dataTransfer.types.includes('Files')) return // words may be dropped on the field
  event.preventDefault()
  document.body.classList.toggle('over', event.type === 'dragover')
}
for (const kind of ['dragover', 'dragleave']) addEventListener(kind, over)
addEventListener('drop', guarded(async event => { over(event); await addFiles([...event.dataTransfer.files]) }))
addEventListener('paste', guarded(async event => { await addFiles([...event.clipboardData.files]) }))
addEventListener('hashchange', guarded(visit))
await guarded(visit)()
document.documentElement.dataset.ready = 'true'
