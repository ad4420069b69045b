"""The composition root: a configuration and a task become the objects that the loop works on."""
