package driver

import (
	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/encoding/protowire"
)

// CSI 1.13 replaced the alpha VolumeCondition by NodeGetVolumeHealth and the
// capability VOLUME_CONDITION by GET_VOLUME_HEALTH, and reserved the old
// numbers. Kubelets that were built with CSI 1.12 and older know only the old
// ones, so both are answered: the new ones by their types, the old ones in
// their wire format, which new kubelets skip as unknown fields.
//
// The old definitions (csi.proto at v1.12.0):
//
//	enum NodeServiceCapability.RPC.Type { VOLUME_CONDITION = 4; }
//	message NodeGetVolumeStatsResponse { VolumeCondition volume_condition = 2; }
//	message VolumeCondition { bool abnormal = 1; string message = 2; }
const (
	legacyVolumeCondition csi.NodeServiceCapability_RPC_Type = 4

	fieldVolumeCondition  protowire.Number = 2
	fieldAbnormal         protowire.Number = 1
	fieldConditionMessage protowire.Number = 2
)

// setVolumeCondition adds the old volume_condition to a response.
func setVolumeCondition(res *csi.NodeGetVolumeStatsResponse, c condition) {
	var b []byte
	message := "the volume is mounted and readable, " + c.message
	if c.abnormal() {
		message = c.reason + ": " + c.message
		b = protowire.AppendTag(b, fieldAbnormal, protowire.VarintType)
		b = protowire.AppendVarint(b, 1)
	}
	b = protowire.AppendTag(b, fieldConditionMessage, protowire.BytesType)
	b = protowire.AppendString(b, told(message))

	unknown := protowire.AppendTag(res.ProtoReflect().GetUnknown(), fieldVolumeCondition, protowire.BytesType)
	res.ProtoReflect().SetUnknown(protowire.AppendBytes(unknown, b))
}
