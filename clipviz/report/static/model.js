// What the canvases expect of a model, without a kernel: traits that can be read, written and listened to.

class Model {
  #traits;
  #heard = {};

  constructor(traits) {
    this.#traits = traits;
  }

  get(name) {
    return this.#traits[name];
  }

  set(name, value) {
    this.#traits[name] = value;
    for (const told of [...(this.#heard[`change:${name}`] || [])]) told();
  }

  // Several traits at once: a canvas waits for the last of them before it draws.
  fill(traits) {
    for (const [name, value] of Object.entries(traits)) this.set(name, value);
  }

  on(event, told) {
    (this.#heard[event] ||= new Set()).add(told);
  }

  off(event, told) {
    this.#heard[event]?.delete(told);
  }

  save_changes() {}
}

// The text of a packed block; "" where the page has none.
async function unpacked(id) {
  const text = document.getElementById(id).textContent;
  if (!text) return "";
  const stream = new Blob([bytesFrom(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function bytesFrom(base64) {
  const letters = atob(base64);
  const bytes = new Uint8Array(letters.length); // a loop is ten times as fast as Uint8Array.from with a function
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

// Numbers as `array` in page.py writes them: "u2:...". Halves become ordinary numbers.
function numbers(text) {
  const [kind, base64] = text.split(":");
  const { buffer } = bytesFrom(base64);
  if (kind === "f2") return Float32Array.from(new Uint16Array(buffer), half);
  return new { u1: Uint8Array, u2: Uint16Array, i4: Int32Array, f4: Float32Array }[kind](buffer);
}

function half(bits) {
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  const sign = bits >> 15 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}
