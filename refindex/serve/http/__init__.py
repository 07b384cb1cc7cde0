"""An archive over HTTP, read only: needs the extra ``serve`` (Starlette and uvicorn)."""
