"""How the scripted demonstrators of the tasks move; `visuomotor.experts` is the door."""
