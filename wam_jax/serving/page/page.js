// Asks for /status a few times a second and draws it. Texts of clients are only ever texts.
'use strict';

const PERIOD_MS = 400;
const cards = new Map();  // By number of the episode.

const byId = (id) => document.getElementById(id);
const ms = (value) => value === null ? '–' : value < 10 ? value.toFixed(1) : value.toFixed(0);

function span(seconds) {
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(0)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function make(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

function drawTiles(status) {
  const { latency, counts, about } = status;
  const tiles = [
    [counts.open, about.slots ? `/ ${about.slots}` : '', 'sessions'],
    [ms(latency.p50), 'ms', 'median'],
    [ms(latency.p95), 'ms', '95 % below'],
    [latency.per_s.toFixed(1), '/ s', 'chunks'],
    [counts.imagined, '', counts.dropped ? `imagined, ${counts.dropped} dropped` : 'imagined'],
    [counts.refused, '', 'refused'],
  ];
  if (about.record) tiles.push([counts.recorded, '', 'recorded']);
  byId('tiles').replaceChildren(...tiles.map(([value, unit, name]) => {
    const tile = make('div', '');
    tile.className = 'tile';
    const number = make('b', value);
    number.append(make('small', unit));
    tile.append(number, make('span', name));
    return tile;
  }));
}

function drawLatency(latency) {
  const plot = byId('latency');
  const { width, height } = plot.viewBox.baseVal;
  const svg = (tag, attributes) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const ages = latency.ages_ms;
  const top = Math.max(...ages, 1e-3) * 1.2;
  const slot = width / 240;
  const bars = ages.map((age, i) => svg('rect', {
    class: 'bar', x: width - (ages.length - i) * slot, y: height * (1 - age / top),
    width: slot * 0.72, height: height * age / top,
  }));
  const lines = ages.length ? [latency.p50, latency.p95].map((value) => svg('line', {
    x1: 0, x2: width, y1: height * (1 - value / top), y2: height * (1 - value / top),
  })) : [];
  plot.replaceChildren(...bars, ...lines);
  byId('scale').textContent = ages.length
    ? `Lines: median ${ms(latency.p50)} ms and 95 % below ${ms(latency.p95)} ms; `
      + `99 % below ${ms(latency.p99)}, longest ${ms(Math.max(...ages))} of ${ages.length} answers.`
    : 'No answers yet.';
}

// The frames of a strip, one after the other; the newest real one stays.
class Film {
  constructor(canvas, episode, kind) {
    this.canvas = canvas;
    this.source = `frames/${episode}/${kind}`;
    this.version = 0;
    this.plays = kind === 'imagined';
    this.strip = null;
    this.timer = null;
  }

  update(version, frames, fps) {
    if (!version || version === this.version) return;
    this.version = version;
    const strip = new Image();
    strip.onload = () => this.show(strip, frames, fps);
    strip.src = `${this.source}?${version}`;
  }

  show(strip, frames, fps) {
    this.strip = strip;
    this.frames = frames;
    this.canvas.width = strip.naturalWidth / frames;
    this.canvas.height = strip.naturalHeight;
    this.canvas.classList.add('drawn');
    clearInterval(this.timer);
    let at = this.plays ? 0 : frames - 1;
    this.draw(at);
    if (this.plays && frames > 1) {
      this.timer = setInterval(() => this.draw(at = (at + 1) % frames), 1000 / fps);
    }
  }

  draw(at) {
    const { width, height } = this.canvas;
    const context = this.canvas.getContext('2d');
    context.drawImage(this.strip, at * width, 0, width, height, 0, 0, width, height);
  }

  close() { clearInterval(this.timer); }
}

class Card {
  constructor(session) {
    this.element = byId('card').content.firstElementChild.cloneNode(true);
    this.films = ['real', 'imagined'].map(
      (kind) => [kind, new Film(this.element.querySelector(`.${kind}`), session.episode, kind)]);
  }

  update(session) {
    const find = (selector) => this.element.querySelector(selector);
    const isOver = session.ended_s !== null;
    this.element.classList.toggle('over', isOver);
    find('h3').textContent = `${session.robot} · ${session.session}`;
    find('.prompt').textContent = session.prompt;
    const pill = find('.pill');
    pill.className = isOver ? 'pill over' : session.silent_s > 5 ? 'pill waits' : 'pill';
    pill.textContent = isOver ? `over for ${span(session.ended_s)}`
      : session.silent_s > 5 ? `silent for ${span(session.silent_s)}` : 'acts';
    for (const [kind, film] of this.films) {
      film.update(session.versions[kind], session.frames[kind], session.video_fps);
    }
    const facts = [
      ['chunks', `${session.chunks} (${span(session.seconds)})`],
      ['answer', `${ms(session.age_ms)} ms`],
      ['waited', `${ms(session.queue_ms)} ms`],
      ['began by', session.began],
    ];
    find('dl').replaceChildren(
      ...facts.map(([name]) => make('dt', name)), ...facts.map(([, value]) => make('dd', value)));
  }

  close() {
    this.films.forEach(([, film]) => film.close());
    this.element.remove();
  }
}

function drawSessions(sessions) {
  const shown = new Set(sessions.map((session) => session.episode));
  for (const [episode, card] of cards) {
    if (!shown.has(episode)) { card.close(); cards.delete(episode); }
  }
  sessions.forEach((session, place) => {
    if (!cards.has(session.episode)) cards.set(session.episode, new Card(session));
    const card = cards.get(session.episode);
    card.update(session);
    const list = byId('sessions');
    if (list.children[place] !== card.element) list.insertBefore(card.element, list.children[place] ?? null);
  });
  byId('nobody').hidden = sessions.length > 0;
}

function drawStage(text, isReady) {
  byId('stage').textContent = text;
  byId('stage').className = isReady ? 'pill' : 'pill waits';
}

async function update() {
  try {
    const answer = await fetch('status', { cache: 'no-store' });
    if (!answer.ok) throw new Error(answer.status);
    const status = await answer.json();
    drawStage(status.stage || 'ready', !status.stage);
    if (status.about) {
      const { policy, checkpoint_step: step, robots, up_s: up } = status.about;
      document.title = `${policy} · wam_jax`;
      byId('policy').textContent = policy;
      byId('about').textContent = `step ${step} · ${robots.join(', ')} · up for ${span(up)}`;
      drawTiles(status);
      drawLatency(status.latency);
      drawSessions(status.sessions);
    }
  } catch (error) {
    drawStage('the server does not answer', false);
  }
  setTimeout(update, PERIOD_MS);
}

update();
