// The server renders: this only puts its newest rendering in place, and says when none comes any more.
const events = new EventSource("events");
const board = document.getElementById("board");
const live = document.getElementById("live");
events.onmessage = (event) => {
  const open = [...board.querySelectorAll("details[open]")].map((details) => details.id);
  board.innerHTML = event.data;
  for (const id of open) {
    document.getElementById(id)?.setAttribute("open", "");
  }
  live.textContent = "Updated live.";
};
events.onerror = () => {
  live.textContent = "No answer: what you see is old.";
};
