"""Slipway's orchestrator: job file -> dataset -> training -> proven export -> service."""
