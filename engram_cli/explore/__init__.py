"""A local page that looks texts, n-grams and rows up: `engram explore`."""
