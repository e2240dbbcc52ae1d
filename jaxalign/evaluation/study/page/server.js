// What the page keeps and how it asks the server. The rater's key travels in a header, never in an address.

const RETRY_SECONDS = [1, 2, 4, 8, 15];

export const link = { credential: readLink() }; // the part of the address behind "#": a rater's key, or what joins with

function readLink() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return location.hash.slice(1);
  }
}

// 128 random bits; crypto.randomUUID is not there on plain http.
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Storage may be switched off, or full: the study then goes on without it.
export function stored(storage, name) {
  try {
    return storage.getItem(name);
  } catch {
    return null;
  }
}

export function store(storage, name, value) {
  try {
    if (value === null) storage.removeItem(name);
    else storage.setItem(name, value);
  } catch {
    /* see above */
  }
}

export function remembered(storage, name, make) {
  const value = stored(storage, name) ?? make();
  store(storage, name, value);
  return value;
}

// { status, data }; status 0: no answer came.
export async function ask(path, body, options = {}) {
  const sendable = /^[\x21-\x7e]+$/.test(link.credential); // a header holds no other characters, and no key has them
  const headers = link.credential ? { Authorization: `Bearer ${sendable ? link.credential : "?"}` } : {};
  const request = body === undefined
    ? { headers }
    : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) };
  try {
    const response = await fetch(path, { ...request, ...options, credentials: "omit" });
    return { status: response.status, data: await response.json() };
  } catch {
    return { status: 0, data: { error: "the study's server does not answer" } };
  }
}

const again = (status) => status === 0 || status === 408 || status === 429 || status >= 500;

// Ask until there is an answer, calling `whenWaiting` before every wait. What is sent has an id of its own, so that
// sending it twice stores it once.
export async function askUntilAnswered(path, body, whenWaiting) {
  for (let attempt = 0; ; attempt++) {
    const answer = await ask(path, body);
    if (!again(answer.status)) return answer;
    whenWaiting();
    const seconds = RETRY_SECONDS[Math.min(attempt, RETRY_SECONDS.length - 1)];
    await new Promise((resolve) => {
      const done = () => {
        removeEventListener("online", done);
        clearTimeout(timer);
        resolve();
      };
      const timer = setTimeout(done, seconds * 1000);
      addEventListener("online", done);
    });
  }
}
