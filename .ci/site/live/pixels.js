// From a picture to the square that the graph takes, and from score maps to masks: the arithmetic of Pillow and
// NumPy to the last bit, so that a browser answers as Python does.

const f32 = Math.fround
const sinc = x => x === 0 ? 1 : Math.sin(Math.PI*x)/(Math.PI*x)

const FILTERS = { // name -> reach in pixels, weight at a distance (Pillow, Resample.c)
  box: [.5, x => x > -.5 && x <= .5 ? 1 : 0],
  bilinear: [1, x => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, x => Math.abs(x) >= 1 ? 0 : sinc(x)*(.54 + .46*Math.cos(Math.PI*x))],
  bicubic: [2, x => {
    const d = Math.abs(x)
    if (d < 1) return (1.5*d - 2.5)*d*d + 1
    return d < 2 ? ((-.5*d + 2.5)*d - 4)*d + 2 : 0
  }],
  lanczos: [3, x => x >= -3 && x < 3 ? sinc(x)*sinc(x/3) : 0],
}

const BITS = 2**22 // weights are whole numbers, of which this is one

// Which inputs an output pixel takes, and the weight of each
function taps(from, to, filter) {
  const scale = from/to
  if (filter === 'nearest') {
    let at = scale/2 - scale // a sum, whose roundings Pillow's has too
    return Array.from({length: to}, () => ({first: Math.trunc(at += scale), weights: [BITS]}))
  }
  const stretch = Math.max(scale, 1), [reach, weigh] = FILTERS[filter]
  return Array.from({length: to}, (_, i) => {
    const centre = (i + .5)*scale
    const first = Math.max(0, Math.trunc(centre - reach*stretch + .5))
    const last = Math.min(from, Math.trunc(centre + reach*stretch + .5))
    const raw = Array.from({length: last - first}, (_, k) => weigh((k + first - centre + .5)*(1/stretch)))
    const sum = raw.reduce((a, b) => a + b, 0)
    return {first, weights: raw.map(w => w/(sum || 1)).map(w => Math.trunc(w*BITS + (w < 0 ? -.5 : .5)))}
  })
}

// One axis of `pixels` (outer, from, inner) becomes `to` long; every value a byte again
function along(pixels, outer, from, inner, to, filter) {
  const result = new Uint8ClampedArray(outer*to*inner)
  taps(from, to, filter).forEach(({first, weights}, i) => {
    for (let o = 0; o < outer; o++) for (let c = 0; c < inner; c++) {
      let sum = BITS/2
      for (let k = 0, at = (o*from + first)*inner + c; k < weights.length; k++, at += inner) sum += pixels[at]*weights[k]
      result[(o*to + i)*inner + c] = Math.floor(sum/BITS)
    }
  })
  return result
}

// {data, width, height} with `channels` bytes a pixel -> bytes (height, width, channels) of another size. The order of
// the axes is that of Pillow 13, found by trial: the height first where it shrinks more than twice as much
export function resize({data, width, height}, toWidth, toHeight, filter, channels = 4) {
  const tall = height - toHeight > 2*Math.max(width - toWidth, 0)
  if (tall) data = along(data, 1, height, width*channels, toHeight, filter)
  if (width !== toWidth) data = along(data, tall ? toHeight : height, width, channels, toWidth, filter)
  return tall || height === toHeight ? data : along(data, 1, height, toWidth*channels, toHeight, filter)
}

// The picture as the graph takes it: (3, S, S) float32
export function squareInput(picture, {img_size: side, interpolation, mean, std}) {
  const rgba = resize(picture, side, side, interpolation), square = new Float32Array(3*side*side)
  for (let c = 0; c < 3; c++) for (let i = 0; i < side*side; i++) {
    square[c*side*side + i] = f32(f32(rgba[4*i + c]/255) - f32(mean[c]))/f32(std[c])
  }
  return square
}

// Bilinear interpolation of one map (h, w), the corners of the map on the corners of the result (height, width)
export function enlarge(map, h, w, height, width) {
  const places = (length, n) => Array.from({length}, (_, i) => {
    const at = f32(i*f32((n - 1)/Math.max(length - 1, 1))), low = Math.min(Math.trunc(at), n - 1)
    return [low, Math.min(low + 1, n - 1), f32(at - low)]
  })
  const mixed = (a, b, share) => f32(a + f32(share*f32(b - a)))
  const tall = new Float32Array(height*w), result = new Float32Array(height*width), across = places(width, w)
  places(height, h).forEach(([low, high, share], y) => {
    for (let x = 0; x < w; x++) tall[y*w + x] = mixed(map[low*w + x], map[high*w + x], share)
  })
  for (let y = 0; y < height; y++) across.forEach(([low, high, share], x) => {
    result[y*width + x] = mixed(tall[y*w + low], tall[y*w + high], share)
  })
  return result
}

const MOST_PIXELS = 40e6, MOST_BYTES = 50e6, MOST_SIDE = 32767 // of a canvas
const KINDS = [[0xff, 0xd8], [0x89, 0x50, 0x4e, 0x47], [0x47, 0x49, 0x46, 0x38], [0x42, 0x4d], [0x52, 0x49, 0x46, 0x46]]

// A file -> ImageData, upright, over white; an Error in one line for what is no picture, or too large a one
export async function readPicture(file) {
  const name = file.name || 'the picture'
  if (file.size > MOST_BYTES) throw new Error(`${name} has ${Math.round(file.size/1e6)} MB; ${MOST_BYTES/1e6} at most are read.`)
  const head = new Uint8Array(await file.slice(0, 8).arrayBuffer())
  if (!KINDS.some(kind => kind.every((byte, i) => head[i] === byte))) {
    throw new Error(`${name} is no picture that is read here: choose a JPEG, PNG, WebP, GIF or BMP.`)
  }
  const address = URL.createObjectURL(file), image = new Image()
  try {
    await new Promise((resolve, reject) => { // the size is known before the pixels are
      Object.assign(image, {onload: resolve, onerror: reject, src: address})
    })
    const pixels = image.naturalWidth*image.naturalHeight
    if (pixels > MOST_PIXELS) throw new Error(`${name} has ${Math.round(pixels/1e6)} megapixels; ${MOST_PIXELS/1e6} at most are read.`)
    const side = Math.max(image.naturalWidth, image.naturalHeight)
    if (side > MOST_SIDE) throw new Error(`${name} has a side of ${side} pixels; ${MOST_SIDE} at most are read.`)
    return flatten(await createImageBitmap(file, {colorSpaceConversion: 'none', premultiplyAlpha: 'none'}))
  } catch (error) {
    throw error instanceof Error && error.message.startsWith(name) ? error
      : new Error(`${name} is no picture that can be read: it is damaged, or of another kind than its first bytes say.`)
  } finally { URL.revokeObjectURL(address) }
}

// The pixels of a bitmap or a canvas over white, at its own size or another
export function flatten(bitmap, width = bitmap.width, height = bitmap.height) {
  const context = new OffscreenCanvas(width, height).getContext('2d', {willReadFrequently: true})
  context.fillStyle = 'white'
  context.fillRect(0, 0, width, height)
  context.drawImage(bitmap, 0, 0, width, height)
  return context.getImageData(0, 0, width, height)
}
