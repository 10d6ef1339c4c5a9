"""Adds class labels to a converted Core ML program.

`coremltools.convert(classifier_config=...)` (9.0) fails for a program with named or fp16 outputs beside the
probabilities; this writes the same operation and description that it writes for the programs it can do.
"""

from __future__ import annotations

from typing import Any

from infer.runtimes.mil.package import coremltools

LABEL = "classLabel"
TABLE = "classLabel_probs"


def add_labels(spec: Any, class_names: tuple[str, ...]) -> None:
    """Append `classify` on the program's `probabilities` and make the package a classifier, in place.

    Adds the outputs `classLabel` (string) and `classLabel_probs` (string to double); the others stay.
    """
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    block.operations.append(_operation(class_names))
    others = list(block.outputs)
    block.outputs[:] = [LABEL, TABLE, *others]
    descriptions = list(spec.description.output)
    del spec.description.output[:]
    label, table = spec.description.output.add(name=LABEL), spec.description.output.add(name=TABLE)
    label.type.stringType.SetInParent()
    table.type.dictionaryType.stringKeyType.SetInParent()
    spec.description.output.extend(descriptions)
    spec.description.predictedFeatureName = LABEL
    spec.description.predictedProbabilitiesName = TABLE


def _operation(class_names: tuple[str, ...]) -> Any:
    mil = coremltools("coremltools.proto.MIL_pb2")
    string, double = mil.DataType.Value("STRING"), mil.DataType.Value("FLOAT64")
    operation = mil.Operation(type="classify")
    operation.inputs["probabilities"].arguments.add(name="probabilities")
    classes = operation.inputs["classes"].arguments.add().value
    classes.type.listType.type.tensorType.dataType = string
    classes.type.listType.length.constant.size = len(class_names)
    for name in class_names:
        value = classes.immediateValue.list.values.add()
        value.type.tensorType.dataType = string
        value.immediateValue.tensor.strings.values.append(name)
    operation.outputs.add(name=LABEL).type.tensorType.dataType = string
    table = operation.outputs.add(name=TABLE).type.dictionaryType
    table.keyType.tensorType.dataType = string
    table.valueType.tensorType.dataType = double
    attribute = operation.attributes["name"]
    attribute.type.tensorType.dataType = string
    attribute.immediateValue.tensor.strings.values.append("classify")
    return operation
