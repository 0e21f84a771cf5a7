// New scenes like those that the model was trained on: data.scenes in small, with its outlines, colours and sizes, but
// fewer objects, which do not touch. Phrases are the plainest: what singles an object out, and which is first on a side.

// Numbers from 0 to 1 that a seed fixes (a linear congruential generator, with the constants of Numerical Recipes)
function chance(seed) {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    const mixed = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) // its low bits alone are poor
    return ((mixed ^ (mixed >>> 13)) >>> 0)/2**32
  }
}

function hsv(hue, saturation, value) {
  const part = n => {
    const k = (n + hue/60) % 6
    return Math.round(255*value*(1 - saturation*Math.max(0, Math.min(k, 4 - k, 1))))
  }
  return [part(5), part(3), part(1)]
}

// 4 to 6 objects that do not touch; another try where no place is left
function arrange(world, random, side) {
  const one = names => names[Math.floor(random()*names.length)], scale = side/64
  const shapes = Object.keys(world.outlines), few = Array.from({length: 3}, () => one(Object.keys(world.colours)))
  for (const objects = [], n = 4 + Math.floor(3*random());;) {
    for (let tries = 0; objects.length < n && tries < 200; tries++) {
      const object = {shape: one(shapes), colour: one(few), size: one(Object.keys(world.areas))}
      const width = Math.sqrt(world.areas[object.size]*(.95 + .1*random()))*scale
      const reach = 1 + width*Math.max(...world.outlines[object.shape].map(([x, y]) => Math.hypot(x, y)))
      Object.assign(object, {width, reach, x: reach + random()*(side - 2*reach), y: reach + random()*(side - 2*reach)})
      if (objects.every(o => Math.hypot(o.x - object.x, o.y - object.y) > .85*(o.reach + reach))) objects.push(object)
    }
    if (objects.length === n) return objects
    objects.length = 0
  }
}

function paint(context, world, random, objects, side) {
  const [hue, saturation, value] = [360*random(), .05 + .15*random(), .3 + .3*random()]
  context.fillStyle = `rgb(${hsv(hue, saturation, value)})`
  context.fillRect(0, 0, side, side)
  for (const [cells, strength] of [[4, .12], [16, .08]]) { // blotches, coarse and fine
    const noise = new OffscreenCanvas(cells, cells), ink = noise.getContext('2d')
    for (let i = 0; i < cells*cells; i++) {
      ink.fillStyle = `rgba(${random() < .5 ? '0,0,0' : '255,255,255'},${2*strength*random()})`
      ink.fillRect(i % cells, Math.floor(i/cells), 1, 1)
    }
    context.imageSmoothingQuality = 'high'
    context.drawImage(noise, 0, 0, side, side)
  }
  for (const {shape, colour, width, x, y} of objects) {
    const [hue, saturation, value] = world.colours[colour], turn = (random() - .5)*24*Math.PI/180
    const near = part => Math.min(1, part*(.94 + .12*random()))
    context.fillStyle = `rgb(${hsv((hue + 355 + 10*random()) % 360, near(saturation), near(value))})`
    context.setTransform(width*Math.cos(turn), width*Math.sin(turn), -width*Math.sin(turn), width*Math.cos(turn), x, y)
    context.beginPath()
    world.outlines[shape].forEach(point => context.lineTo(...point))
    context.fill()
    context.resetTransform()
  }
  const pixels = context.getImageData(0, 0, side, side)
  for (let i = 0; i < pixels.data.length; i++) {
    if (i % 4 < 3) pixels.data[i] += 7*(random() + random() + random() + random() - 2)*Math.sqrt(3) // nearly normal
  }
  return pixels
}

function phrases(objects, side) {
  const found = []
  for (const o of objects) {
    const same = part => objects.filter(p => part.every(name => p[name] === o[name]))
    const told = [['colour', 'shape'], ['size', 'colour', 'shape']].find(part => same(part).length === 1)
    if (told) found.push(`the ${told.map(name => o[name]).join(' ')}`)
    const group = same(['shape']).length > 1 ? ['shape'] : ['colour']
    const others = same(group).filter(p => p !== o), name = group[0] === 'shape' ? o.shape : `${o.colour} object`
    if (!others.length) continue
    if (others.every(p => o.x < p.x - side/12)) found.push(`leftmost ${name}`)
    else if (others.every(p => o.x > p.x + side/12)) found.push(`rightmost ${name}`)
    else if (others.every(p => o.y < p.y - side/12)) found.push(`top ${name}`)
    else if (others.every(p => o.y > p.y + side/12)) found.push(`bottom ${name}`)
  }
  return [...new Set(found)]
}

// {picture: ImageData, phrases, look: what is in it, in words}; the same for the same seed in one browser, and nearly so in another
export function drawScene(world, seed) {
  const random = chance(seed), side = world.side
  for (;;) {
    const objects = arrange(world, random, side), asked = phrases(objects, side)
    if (asked.length < 3) continue
    const context = new OffscreenCanvas(side, side).getContext('2d', {willReadFrequently: true})
    return {picture: paint(context, world, random, objects, side), phrases: asked.slice(0, 6),
      look: objects.map(o => `${o.size} ${o.colour} ${o.shape}`).join(', ')}
  }
}
