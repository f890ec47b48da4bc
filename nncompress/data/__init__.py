"""Data sets: functions of keyword arguments that return a `Dataset`; heavy imports happen inside the calls."""
