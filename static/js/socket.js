// A websocket that comes back by itself. Waits 0.5 s after the first loss, doubling to 15 s, with jitter so that a
// restarted server is not met by all browsers at once.

const FIRST = 500;
const LONGEST = 15000;
const STEADY = 5000;
const SIGNED_OUT = 4401; // the server's own codes
const NOT_FOUND = 4404;

/**
 * Connect to `address()` (a path; asked again at each attempt, so that it can carry the place to resume from).
 * `on.open(again)`, `on.message(event)`, `on.lost(since)` are called as it goes; `stop()` ends it for good.
 */
export function connect(address, on) {
  let socket = null;
  let timer = 0;
  let tries = 0;
  let opened = false;
  let lostAt = 0;
  let openedAt = 0;

  function open() {
    clearTimeout(timer);
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    socket = new WebSocket(`${scheme}//${location.host}${address()}`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      openedAt = Date.now();
      lostAt = 0;
      on.open?.(opened);
      opened = true;
    };
    socket.onmessage = (event) => on.message(event);
    socket.onclose = lose;
  }

  function lose({ code }) {
    socket = null;
    if (code === SIGNED_OUT) return location.reload();
    if (code === NOT_FOUND) {
      stop();
      return on.refused?.();
    }
    lostAt ||= Date.now();
    if (openedAt && lostAt - openedAt > STEADY) tries = 0; // else it was accepted only to be closed again
    openedAt = 0;
    on.lost?.(lostAt);
    timer = setTimeout(open, Math.min(LONGEST, FIRST * 2 ** tries) * (0.7 + Math.random() * 0.6));
    tries += 1;
    return undefined;
  }

  function hurry() {
    if (socket === null && document.visibilityState === "visible") open();
  }

  function stop() {
    clearTimeout(timer);
    window.removeEventListener("online", hurry);
    document.removeEventListener("visibilitychange", hurry);
    if (socket) {
      socket.onclose = socket.onmessage = socket.onopen = null;
      socket.close();
    }
    socket = null;
  }

  window.addEventListener("online", hurry);
  document.addEventListener("visibilitychange", hurry);
  open();
  return { stop, again: () => socket?.close() };
}
