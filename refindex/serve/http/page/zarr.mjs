// Reads arrays of the plain view of an archive: Zarr v3, regular chunks, one "bytes" codec, little endian.

const READERS = {
  bool: (buffer) => Float64Array.from(new Uint8Array(buffer)),
  int8: (buffer) => new Int8Array(buffer),
  int16: (buffer) => new Int16Array(buffer),
  int32: (buffer) => new Int32Array(buffer),
  int64: (buffer) => Float64Array.from(new BigInt64Array(buffer), Number),
  uint8: (buffer) => new Uint8Array(buffer),
  uint16: (buffer) => new Uint16Array(buffer),
  uint32: (buffer) => new Uint32Array(buffer),
  uint64: (buffer) => Float64Array.from(new BigUint64Array(buffer), Number),
  float16: (buffer) => Float64Array.from(new Uint16Array(buffer), half),
  float32: (buffer) => new Float32Array(buffer),
  float64: (buffer) => new Float64Array(buffer),
};

const BITS = { float16: [16, half], float32: [32, float32], float64: [64, float64] };

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 25) * (1024 + fraction) : sign * 2 ** -24 * fraction;
}

function float32(bits) {
  return new Float32Array(Uint32Array.of(bits).buffer)[0];
}

function float64(bits) {
  return new Float64Array(BigUint64Array.of(BigInt(bits)).buffer)[0];
}

/** A fill value of an array document as a number. */
export function fillValue(value, type) {
  if (typeof value === "boolean") return Number(value);
  if (typeof value !== "string") return Number(value);
  if (value.startsWith("0x") && BITS[type]) {
    const [size, convert] = BITS[type];
    return convert(size === 64 ? BigInt(value) : Number(value));
  }
  return Number(value);
}

/** The numbers that stand for "missing" in an array with these attributes. */
export function missingValues(attributes, type) {
  const found = [];
  for (const name of ["_FillValue", "missing_value"]) {
    for (const value of [attributes?.[name] ?? []].flat()) {
      if (typeof value === "number") found.push(type === "float32" ? Math.fround(value) : value);
      else if (typeof value === "string" && /^[A-Za-z0-9+/]{11}=$/.test(value)) {
        // xarray spells the fill value of floats as the base64 of eight bytes.
        const bytes = Uint8Array.from(atob(value), (c) => c.charCodeAt(0));
        found.push(new DataView(bytes.buffer).getFloat64(0, true));
      }
    }
  }
  return found.filter((value) => !Number.isNaN(value));
}

async function get(url, signal) {
  const response = await fetch(url, { signal });
  if (response.status === 404) return null;
  if (!response.ok) {
    let reason = `HTTP status ${response.status}`;
    try {
      reason = (await response.json()).error ?? reason;
    } catch {
      // No reason is given.
    }
    throw new Error(reason);
  }
  return response;
}

/** One array of a store. */
export class PlainArray {
  #chunks = new Map();

  constructor(base, path, document) {
    this.base = base;
    this.path = path;
    this.document = document;
    this.shape = document.shape;
    this.type = document.data_type;
    this.attributes = document.attributes ?? {};
    this.dims = document.shape.map((_, axis) => document.dimension_names?.[axis] ?? `dimension ${axis}`);
    this.chunkShape = document.chunk_grid.configuration.chunk_shape;
    this.fill = fillValue(document.fill_value, this.type);
    this.missing = missingValues(this.attributes, this.type);
  }

  /** Whether its values are numbers that can be drawn. */
  static isDrawable(document) {
    return (
      document.node_type === "array" &&
      typeof document.data_type === "string" &&
      document.data_type in READERS &&
      document.chunk_grid.name === "regular" &&
      document.codecs.length === 1 &&
      document.codecs[0].name === "bytes" &&
      document.shape.length > 0 &&
      document.shape.every((n) => n > 0)
    );
  }

  async #chunk(place, signal) {
    const key = place.join("/");
    if (!this.#chunks.has(key)) {
      const path = this.path ? `${this.path.split("/").map(encodeURIComponent).join("/")}/` : "";
      const response = await get(`${this.base}${path}c/${key}`, signal);
      const values = response && READERS[this.type](await response.arrayBuffer());
      const size = this.chunkShape.reduce((product, n) => product * n, 1);
      if (values && values.length !== size) throw new Error(`${this.path}: chunk ${key} has ${values.length} elements`);
      this.#chunks.set(key, values);
      const most = Math.max(8, Math.floor(8e6 / size));
      while (this.#chunks.size > most) this.#chunks.delete(this.#chunks.keys().next().value);
    }
    return this.#chunks.get(key);
  }

  /** How many chunks a box touches. */
  chunksIn(start, stop) {
    return this.chunkShape.reduce(
      (product, n, axis) => product * (Math.ceil(stop[axis] / n) - Math.floor(start[axis] / n)),
      1,
    );
  }

  /** The values of a box, in C order, as numbers. */
  async read(start, stop, signal) {
    const extents = start.map((begin, axis) => stop[axis] - begin);
    const out = new Float64Array(extents.reduce((product, n) => product * n, 1)).fill(this.fill);
    const first = start.map((begin, axis) => Math.floor(begin / this.chunkShape[axis]));
    const last = stop.map((end, axis) => Math.floor((end - 1) / this.chunkShape[axis]));
    const places = [];
    for (let place = [...first]; place; place = next(place, first, last)) places.push(place);
    let at = 0;
    const work = async () => {
      while (at < places.length) {
        const place = places[at++];
        const values = await this.#chunk(place, signal);
        if (values) this.#copy(values, place, start, stop, extents, out);
      }
    };
    await Promise.all(Array.from({ length: Math.min(6, places.length) }, work));
    return out;
  }

  #copy(values, place, start, stop, extents, out) {
    const ndim = place.length;
    const origin = place.map((n, axis) => n * this.chunkShape[axis]);
    const low = origin.map((n, axis) => Math.max(n, start[axis]));
    const high = origin.map((n, axis) => Math.min(n + this.chunkShape[axis], stop[axis]) - 1);
    const row = high[ndim - 1] - low[ndim - 1] + 1;
    // All but the last dimension one by one; along the last one values are next to each other.
    for (let at = [...low]; at; at = next(at, low.slice(0, -1), high.slice(0, -1))) {
      let from = 0;
      let to = 0;
      for (let axis = 0; axis < ndim; axis++) {
        from = from * this.chunkShape[axis] + at[axis] - origin[axis];
        to = to * extents[axis] + at[axis] - start[axis];
      }
      out.set(values.subarray(from, from + row), to);
    }
  }
}

/** The place after another one in C order, over the dimensions that low and high have. */
function next(place, low, high) {
  const following = [...place];
  for (let axis = low.length - 1; axis >= 0; axis--) {
    if (following[axis] < high[axis]) {
      following[axis] += 1;
      return following;
    }
    following[axis] = low[axis];
  }
  return null;
}

/** The arrays of a store that can be drawn, by path. */
export async function openArrays(base) {
  const response = await get(`${base}zarr.json`);
  if (!response) throw new Error(`there is no ${base}zarr.json`);
  const root = await response.json();
  const found = new Map();
  for (const [path, document] of Object.entries(root.consolidated_metadata?.metadata ?? { "": root })) {
    if (PlainArray.isDrawable(document)) found.set(path, new PlainArray(base, path, document));
  }
  return found;
}
